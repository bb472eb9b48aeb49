// Token-aware pooling of a random image, its result and its gradients by the definition in double, and the calls that
// every backend's tests make.
#pragma once

#include "pool_case.h"

namespace attn {

struct TapOptions : PoolOptions {
  int64_t height = 5, width = 7;
  std::vector<int32_t> dilations = {0, 1, 2, 3};

  TapOptions with_tokens() const {
    TapOptions o = *this;
    o.tokens = height * width;
    return o;
  }
};

template <class E> struct TapCase {
  TapOptions o;
  std::mt19937 random;
  TokenRows<E> x, weights, dout;
  PoolResult<E> out, dx, dweights;

  int64_t scales() const { return static_cast<int64_t>(o.dilations.size()); }
  static PoolOptions of_weights(TapOptions o) {
    o.channels = static_cast<int64_t>(o.dilations.size());
    o.whole = false;
    return o;
  }

  explicit TapCase(const TapOptions& options)
      : o(options.with_tokens()), random(o.seed), x(TokenRows<E>::random(o, o.tokens, random)),
        weights(TokenRows<E>::random(of_weights(o), o.tokens, random)), dout(TokenRows<E>::random(o, o.tokens, random)),
        out(o.batch * o.tokens * o.channels), dx(o.batch * o.tokens * o.channels),
        dweights(o.batch * o.tokens * scales()) {}

  TapPoolParams forward() {
    TapPoolParams p{E::dtype, o.batch, o.height, o.width,        o.channels,
                    scales(), {},      x.view(), weights.view(), out.data.data()};
    std::copy(o.dilations.begin(), o.dilations.end(), p.dilation);
    return p;
  }
  TapPoolBackwardParams backward() { return {forward(), dout.view(), dx.data.data(), dweights.data.data()}; }

  void check() const {
    const size_t n = dx.data.size();
    std::vector<double> want(n), size(n), dwant(n), dsize(n), dw(dweights.data.size()), dw_size(dw.size());
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t y = 0; y < o.height; ++y) {
        for (int64_t x0 = 0; x0 < o.width; ++x0) {
          for (int64_t k = 0; k < scales(); ++k) add_scale(b, y, x0, k, want, size, dwant, dsize, dw, dw_size);
        }
      }
    }
    for (size_t i = 0; i < n; ++i) {
      ASSERT_NEAR(out[i], want[i], sum_error<E>(want[i], size[i])) << i;
      ASSERT_NEAR(dx[i], dwant[i], sum_error<E>(dwant[i], dsize[i])) << "dx " << i;
    }
    for (size_t i = 0; i < dw.size(); ++i)
      ASSERT_NEAR(dweights[i], dw[i], sum_error<E>(dw[i], dw_size[i])) << "dw " << i;
  }

  void add_scale(int64_t b, int64_t y, int64_t x0, int64_t k, std::vector<double>& want, std::vector<double>& size,
                 std::vector<double>& dwant, std::vector<double>& dsize, std::vector<double>& dw,
                 std::vector<double>& dw_size) const {
    const int64_t here = y * o.width + x0, d = o.dilations[k];
    const double w = weights.get(b, here, k) / 9;
    for (int64_t i = -1; i <= 1; ++i) {
      for (int64_t j = -1; j <= 1; ++j) {  // distance 0: the pixel nine times
        const int64_t yy = y + i * d, xx = x0 + j * d, there = yy * o.width + xx;
        if (yy < 0 || yy >= o.height || xx < 0 || xx >= o.width) continue;
        for (int64_t c = 0; c < o.channels; ++c) {
          const size_t at = (b * o.tokens + here) * o.channels + c, other = (b * o.tokens + there) * o.channels + c;
          const double value = x.get(b, there, c), dy = dout.get(b, here, c);
          want[at] += w * value;
          size[at] += std::abs(w * value);
          dwant[other] += w * dy;
          dsize[other] += std::abs(w * dy);
          dw[(b * o.tokens + here) * scales() + k] += value * dy / 9;
          dw_size[(b * o.tokens + here) * scales() + k] += std::abs(value * dy / 9);
        }
      }
    }
  }
};

inline std::vector<TapOptions> tap_calls() {
  std::vector<TapOptions> all;
  const int64_t shapes[][2] = {{5, 7}, {1, 1}, {1, 9}, {18, 3}, {17, 17}};
  const std::vector<std::vector<int32_t>> dilations = {{0, 1, 2, 3}, {1}, {0}, {2, 100, 0, INT32_MAX - 1, 1, 4, 3, 5}};
  for (const auto& shape : shapes) {
    for (const auto& d : dilations) {
      TapOptions o;
      o.height = shape[0];
      o.width = shape[1];
      o.dilations = d;
      o.whole = all.size() % 3 != 2;
      o.channels = o.whole ? (all.size() % 2 ? 16 : 80) : 11;
      o.shift = static_cast<int64_t>(all.size() % 2);
      o.seed = static_cast<unsigned>(all.size());
      all.push_back(o);
    }
  }
  return all;
}

}  // namespace attn
