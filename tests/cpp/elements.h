// Element types of tensors as the tests see them: how a double is stored and read back. Conversions are the simplest
// that are right, and independent of the kernels' own.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "attn/types.h"
#include "half.h"

namespace attn {

struct F32 {
  static constexpr DType dtype = DType::f32;
  using type = float;
  using stat = float;  // of lse
  static constexpr double eps = 1.2e-7;
  static float put(double x) { return static_cast<float>(x); }
  static double get(float x) { return x; }
};

struct F64 {
  static constexpr DType dtype = DType::f64;
  using type = double;
  using stat = double;
  static constexpr double eps = 2.3e-16;
  static double put(double x) { return x; }
  static double get(double x) { return x; }
};

struct BF16 {
  static constexpr DType dtype = DType::bf16;
  using type = uint16_t;
  using stat = float;
  static constexpr double eps = 0.0079;
  static uint16_t put(double x) {
    const float f = static_cast<float>(x);
    uint32_t u;
    std::memcpy(&u, &f, 4);
    if (f != f) return 0x7fc0;
    const uint32_t lower = u & 0xffffu, upper = u >> 16;
    return static_cast<uint16_t>(upper + (lower > 0x8000u || (lower == 0x8000u && upper % 2 == 1)));
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
  static constexpr double eps = 0.00098;
  static half_t put(double x) { return static_cast<half_t>(x); }
  static double get(half_t x) { return static_cast<double>(x); }
};

}  // namespace attn
