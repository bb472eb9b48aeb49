// A random call of the axis gate, and its result and gradients by the formula in double.
#pragma once

#include <gtest/gtest.h>

#include <limits>

#include "attn/pool.h"
#include "elements.h"

namespace attn {

template <class E> struct AxisGateCase {
  int64_t batch, channels, time;
  int64_t gap;  // elements between rows of x and dout
  std::vector<typename E::type> x, channel, time_gate, dout, out, dx, dchannel, dtime;
  bool want[3] = {true, true, true};

  AxisGateCase(int64_t b, int64_t c, int64_t t, int64_t row_gap, uint32_t seed = 1)
      : batch(b), channels(c), time(t), gap(row_gap) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const auto nan = std::numeric_limits<double>::quiet_NaN();
    auto fill = [&](auto& to, int64_t n) {
      to.resize(n);
      for (auto& value : to) value = E::put(normal(random));
    };
    fill(x, b * c * pitch());
    fill(dout, b * c * pitch());
    fill(channel, b * c);
    fill(time_gate, b * t);
    // What isn't written, and what isn't a tensor's own, is NaN.
    for (int64_t i = 0; i < b * c; ++i) {
      for (int64_t j = t; j < pitch(); ++j) x[i * pitch() + j] = dout[i * pitch() + j] = E::put(nan);
    }
    out.resize(b * c * t, E::put(nan));
    dx = out;
    dchannel.resize(b * c, E::put(nan));
    dtime.resize(b * t, E::put(nan));
  }

  int64_t pitch() const { return time + gap; }
  AxisGateParams forward() {
    return {E::dtype,         batch,     channels, time, {x.data(), channels * pitch(), pitch()}, channel.data(),
            time_gate.data(), out.data()};
  }
  AxisGateBackwardParams backward() {
    return {forward(),
            {dout.data(), channels * pitch(), pitch()},
            want[0] ? dx.data() : nullptr,
            want[1] ? dchannel.data() : nullptr,
            want[2] ? dtime.data() : nullptr};
  }

  // One rounding to E, and sums of `size` in all in float32.
  static void near(typename E::type got, double want, double size, const char* name, int64_t at) {
    const double sums = E::dtype == DType::f64 ? 1e-15 : 1e-6;
    const double least = E::dtype == DType::f16 ? 0x1p-25 : 0;  // half a step of the smallest numbers
    ASSERT_NEAR(E::get(got), want, 0.5 * E::eps * std::abs(want) + sums * size + least) << name << " at " << at;
  }

  void check() const {
    std::vector<double> steps(batch * time), step_sizes(batch * time);
    for (int64_t i = 0; i < batch * channels; ++i) {
      double sum = 0, size = 0;
      for (int64_t t = 0; t < time; ++t) {
        const int64_t step = i / channels * time + t;
        const double v = E::get(x[i * pitch() + t]), g = E::get(dout[i * pitch() + t]);
        const double c = E::get(channel[i]), s = E::get(time_gate[step]);
        near(out[i * time + t], v * (c + s), std::abs(v) * (std::abs(c) + std::abs(s)), "out", i * time + t);
        const double gates = std::abs(g) * (std::abs(c) + std::abs(s));
        if (want[0]) near(dx[i * time + t], g * (c + s), gates, "dx", i * time + t);
        sum += v * g;
        size += std::abs(v * g);
        steps[step] += v * g;
        step_sizes[step] += std::abs(v * g);
      }
      if (want[1]) near(dchannel[i], sum, size, "dchannel", i);
    }
    for (int64_t i = 0; want[2] && i < batch * time; ++i) near(dtime[i], steps[i], step_sizes[i], "dtime", i);
    for (const auto& [written, values] : {std::pair{want[0], &dx}, {want[1], &dchannel}, {want[2], &dtime}}) {
      for (auto value : *values) ASSERT_TRUE(written || std::isnan(E::get(value))) << "not wanted, but written";
    }
  }
};

struct AxisGateSizes { int64_t batch, channels, time, gap; };
// Around a vector, a warp's and a block's share; rows that lie on multiples of 16 bytes and rows that don't.
inline const AxisGateSizes kAxisGateSizes[] = {{2, 5, 33, 3},   {1, 40, 16, 0},  {3, 1, 1, 0},    {1, 70, 300, 4},
                                               {2, 130, 64, 8}, {1, 17, 520, 0}, {1, 64, 257, 7}, {1, 3, 512, 0},
                                               {0, 3, 4, 0},    {2, 0, 3, 0},    {2, 3, 0, 1}};

}  // namespace attn
