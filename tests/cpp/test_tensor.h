// Tensors of tests.
#pragma once

#include <random>
#include <vector>

#include "elements.h"

namespace attn {

// [B, H, T, D] in memory of the element type, rows `gap` elements apart; what lies between holds NaN.
template <class E> struct TestTensor {
  int64_t batch, heads, tokens, dim;
  bool token_major;
  int64_t gap = 2;
  std::vector<typename E::type> data;

  TestTensor() = default;
  TestTensor(int64_t b, int64_t h, int64_t t, int64_t d, bool by_token, int64_t between = 2)
      : batch(b), heads(h), tokens(t), dim(d), token_major(by_token), gap(between) {
    data.assign(static_cast<size_t>(b * h * t * (d + gap)), E::put(std::nan("")));
  }

  View4 view() {
    const int64_t row = dim + gap;
    if (token_major) return {data.data(), tokens * heads * row, row, heads * row};
    return {data.data(), heads * tokens * row, tokens * row, row};
  }
  typename E::type& at(int64_t b, int64_t h, int64_t t, int64_t d) {
    const View4 v = view();
    return data[static_cast<size_t>(b * v.batch + h * v.head + t * v.token + d)];
  }
  double get(int64_t b, int64_t h, int64_t t, int64_t d) { return E::get(at(b, h, t, d)); }

  // Contiguous, in double.
  std::vector<double> exact() {
    std::vector<double> x;
    x.reserve(static_cast<size_t>(batch * heads * tokens * dim));
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t d = 0; d < dim; ++d) x.push_back(get(b, h, t, d));
    return x;
  }

  void randomize(std::mt19937& random) {
    std::normal_distribution<double> normal;
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t t = 0; t < tokens; ++t)
          for (int64_t d = 0; d < dim; ++d) at(b, h, t, d) = E::put(normal(random));
  }
};

}  // namespace attn
