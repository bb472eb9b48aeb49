// A merge of random parts, and its result and gradients by the definition in double.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "attn/merge.h"
#include "half.h"

namespace attn::merge_test {

constexpr double kInf = std::numeric_limits<double>::infinity();

// Host elements as the kernels store them, converted by the simplest rule that is right for values of tests' size.
struct F32 {
  static constexpr DType dtype = DType::f32;
  using type = float;
  using stat = float;
  static constexpr double eps = 1.2e-7;
  static float put(double x) { return static_cast<float>(x); }
  static double get(float x) { return x; }
};
struct F64 {
  static constexpr DType dtype = DType::f64;
  using type = double;
  using stat = double;
  static constexpr double eps = 1e-15;  // of the expected values too: they are computed in double
  static double put(double x) { return x; }
  static double get(double x) { return x; }
};
struct BF16 {
  static constexpr DType dtype = DType::bf16;
  using type = uint16_t;
  using stat = float;
  static constexpr double eps = 0.0040;
  static uint16_t put(double x) {
    const float f = static_cast<float>(x);
    uint32_t u;
    std::memcpy(&u, &f, 4);
    return static_cast<uint16_t>((u + 0x8000u) >> 16);
  }
  static double get(uint16_t x) {
    const uint32_t u = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
};
struct F16 {
  static constexpr DType dtype = DType::f16;
  using type = half_t;
  using stat = float;
  static constexpr double eps = 0.0005;
  static half_t put(double x) { return static_cast<half_t>(x); }
  static double get(half_t x) { return x; }
};

template <class E> struct Case {
  int64_t parts, batch, heads, tokens, dim;
  int64_t gap = 3;  // elements between rows: strides are not those of a contiguous tensor
  std::vector<typename E::type> outs, out, dout, douts;
  std::vector<typename E::stat> lses, lse, dlse, dlses;

  Case(int64_t n, int64_t b, int64_t h, int64_t t, int64_t d) : parts(n), batch(b), heads(h), tokens(t), dim(d) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    outs.resize(n * rows() * pitch());
    for (auto& x : outs) x = E::put(normal(random));
    lses.resize(n * rows());
    for (auto& x : lses) x = static_cast<typename E::stat>(3 * normal(random));
    dout.resize(rows() * d);
    for (auto& x : dout) x = E::put(normal(random));
    dlse.resize(rows());
    for (auto& x : dlse) x = static_cast<typename E::stat>(normal(random));
    // A result that isn't written is NaN.
    const auto stat_nan = std::numeric_limits<typename E::stat>::quiet_NaN();
    out.resize(rows() * d, E::put(stat_nan));
    lse.resize(rows(), stat_nan);
    douts.resize(n * rows() * d, E::put(stat_nan));
    dlses.resize(n * rows(), stat_nan);
  }

  int64_t rows() const { return batch * heads * tokens; }
  int64_t pitch() const { return dim + gap; }
  double o(int64_t n, int64_t r, int64_t i) const { return E::get(outs[(n * rows() + r) * pitch() + i]); }
  double l(int64_t n, int64_t r) const { return lses[n * rows() + r]; }
  PartsView outs_view() {
    const int64_t p = pitch();
    return {outs.data(), rows() * p, heads * tokens * p, tokens * p, p};
  }
  PartsView lses_view() { return {lses.data(), rows(), heads * tokens, tokens, 1}; }

  MergeStatesParams forward() {
    return {E::dtype, parts, batch, heads, tokens, dim, outs_view(), lses_view(), out.data(), lse.data()};
  }
  MergeStatesBackwardParams backward() {
    return {E::dtype,
            parts,
            batch,
            heads,
            tokens,
            dim,
            outs_view(),
            lses_view(),
            lse.data(),
            {dout.data(), heads * tokens * dim, tokens * dim, dim},
            {dlse.data(), heads * tokens, tokens, 1},
            douts.data(),
            dlses.data()};
  }

  // Against the definition, in double.
  void check() const {
    for (int64_t r = 0; r < rows(); ++r) {
      double sum = 0;
      for (int64_t n = 0; n < parts; ++n) sum += std::exp(l(n, r));
      if (sum == 0) {
        EXPECT_EQ(lse[r], -kInf);
      } else {
        EXPECT_NEAR(lse[r], std::log(sum), 8 * E64());
      }
      double mean = 0;
      std::vector<double> weight(parts), projection(parts);
      for (int64_t n = 0; n < parts; ++n) {
        weight[n] = l(n, r) == -kInf ? 0 : std::exp(l(n, r)) / sum;
        for (int64_t i = 0; weight[n] > 0 && i < dim; ++i) projection[n] += E::get(dout[r * dim + i]) * o(n, r, i);
        mean += weight[n] * projection[n];
      }
      for (int64_t i = 0; i < dim; ++i) {
        double expected = 0;
        for (int64_t n = 0; n < parts; ++n) expected += weight[n] > 0 ? weight[n] * o(n, r, i) : 0;
        ASSERT_NEAR(E::get(out[r * dim + i]), expected, 4 * tolerance()) << "row " << r << " feature " << i;
      }
      for (int64_t n = 0; n < parts; ++n) {
        const double expected = weight[n] * (dlse[r] + projection[n] - mean);
        ASSERT_NEAR(dlses[n * rows() + r], expected, 100 * E64() * (1 + std::sqrt(dim)))
            << "part " << n << " row " << r;
        for (int64_t i = 0; i < dim; ++i) {
          const double d = weight[n] * E::get(dout[r * dim + i]);
          ASSERT_NEAR(E::get(douts[(n * rows() + r) * dim + i]), d, 4 * tolerance());
        }
      }
    }
  }

  static double tolerance() { return 2 * E::eps + 4e-7 * (E::dtype != DType::f64); }
  static double E64() { return E::dtype == DType::f64 ? F64::eps : F32::eps; }
};

}  // namespace attn::merge_test
