// The kernels' building blocks against plain loops, for every operand type, panel width and tail.
#include "primitives.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

namespace attn {
namespace {

const float kInf = std::numeric_limits<float>::infinity();

// ---- products ------------------------------------------------------------------------------------------------------

struct Type {
  const char* name;
  ProductTable PrimitiveTable::* table;
  double tolerance;
};
// Values are multiples of 1/8 below 4: exact in bf16, and their sums exact in float. Any difference is a wrong term.
const Type kTypes[] = {
    {"f32", &PrimitiveTable::f32, 0}, {"f64", &PrimitiveTable::f64, 0}, {"bf16 pairs", &PrimitiveTable::bf16_pairs, 0}};

std::vector<double> random_values(std::mt19937& random, int64_t n) {
  std::vector<double> x(static_cast<size_t>(n));
  for (double& value : x) value = (static_cast<int>(random() % 64) - 32) / 8.;
  return x;
}

class Products : public testing::TestWithParam<Type> {
 protected:
  const ProductTable& t = primitives().*GetParam().table;
  std::mt19937 random{7};
};

TEST_P(Products, DotPanel) {
  for (int vectors : {1, 2}) {
    const int64_t width = vectors * t.lanes;
    for (int64_t rows : {0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 23, 24, 29, 47}) {
      for (int64_t depth : {1, 2, 3, 8, 17}) {
        const std::vector<double> a = random_values(random, rows * depth), b = random_values(random, depth * width);
        std::vector<double> s(static_cast<size_t>(rows * width)), top(static_cast<size_t>(width));
        const double c = depth % 2 ? 0.5 : 1;
        t.dot_panel(vectors, rows, depth, a.data(), b.data(), c, s.data(), top.data());
        std::vector<double> want_top(static_cast<size_t>(width), -kInf);
        for (int64_t n = 0; n < rows; ++n) {
          for (int64_t lane = 0; lane < width; ++lane) {
            double x = 0;
            for (int64_t d = 0; d < depth; ++d) x += a[n * depth + d] * b[d * width + lane];
            ASSERT_EQ(s[n * width + lane], c * x) << rows << " rows, depth " << depth << ": " << n << " " << lane;
            want_top[lane] = std::max(want_top[lane], c * x);
          }
        }
        ASSERT_EQ(top, want_top) << rows << " rows, depth " << depth;
      }
    }
  }
}

TEST_P(Products, DotMax) {
  for (int vectors : {1, 2}) {
    const int64_t width = vectors * t.lanes;
    for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 29}) {
      for (int64_t depth : {1, 2, 3, 8, 17}) {
        std::vector<double> a = random_values(random, rows * depth);
        const std::vector<double> b = random_values(random, depth * width);
        a[0] = std::nan("");  // a row whose products are all NaN
        std::vector<double> top(static_cast<size_t>(rows));
        t.dot_max(vectors, rows, depth, a.data(), b.data(), top.data());
        for (int64_t n = 0; n < rows; ++n) {
          double want = -kInf;
          for (int64_t lane = 0; lane < width; ++lane) {
            double x = 0;
            for (int64_t d = 0; d < depth; ++d) x += a[n * depth + d] * b[d * width + lane];
            if (x > want) want = x;
          }
          ASSERT_EQ(top[n], want) << rows << " rows, depth " << depth << ": " << n;
        }
      }
    }
  }
}

TEST_P(Products, AccPanel) {
  for (int vectors : {1, 2}) {
    const int64_t width = vectors * t.lanes;
    for (int64_t rows = 1; rows <= width; ++rows) {
      for (int64_t depth : {1, 2, 5, 12}) {
        for (int64_t vecs : {1, 2, 3, 4, 5, 7}) {
          const int64_t columns = vecs * t.lanes;
          std::vector<double> p = random_values(random, depth * width), alpha = random_values(random, width);
          const std::vector<double> b = random_values(random, depth * columns),
                                    o = random_values(random, width * columns);
          std::vector<double> got = o;
          t.acc_panel(vectors, rows, depth, columns, p.data(), b.data(), alpha.data(), got.data());
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t x = 0; x < columns; ++x) {
              double want = o[r * columns + x] * alpha[r];
              for (int64_t n = 0; n < depth; ++n) want += p[n * width + r] * b[n * columns + x];
              ASSERT_EQ(got[r * columns + x], want)
                  << rows << " rows, depth " << depth << ", columns " << columns << ": " << r << " " << x;
            }
          }
        }
      }
    }
  }
}

TEST_P(Products, AddRows) {
  for (int64_t rows : {0, 1, 2, 3, 5, 6, 7, 12, 13, 25}) {
    for (int64_t depth : {1, 2, 3, 17}) {
      for (int64_t vecs : {1, 2, 3, 4}) {
        const int64_t columns = vecs * t.lanes;
        const std::vector<double> a = random_values(random, rows * depth), b = random_values(random, depth * columns);
        const std::vector<double> o = random_values(random, rows * columns);
        std::vector<double> got = o;
        t.add_rows(rows, depth, columns, a.data(), b.data(), got.data());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t x = 0; x < columns; ++x) {
            double want = o[r * columns + x];
            for (int64_t d = 0; d < depth; ++d) want += a[r * depth + d] * b[d * columns + x];
            ASSERT_EQ(got[r * columns + x], want) << rows << " rows, depth " << depth << ", columns " << columns;
          }
        }
      }
    }
  }
}

std::string type_name(const testing::TestParamInfo<Type>& info) {
  const char* names[] = {"F32", "F64", "BF16Pairs"};
  return names[info.index];
}
INSTANTIATE_TEST_SUITE_P(Types, Products, testing::ValuesIn(kTypes), type_name);

// ---- functions -----------------------------------------------------------------------------------------------------

std::vector<float> apply_to(void (*f)(const float*, float*, int64_t), const std::vector<float>& x) {
  std::vector<float> y(x.size());
  f(x.data(), y.data(), static_cast<int64_t>(x.size()));
  return y;
}

class Exp2Edges : public testing::TestWithParam<void (*PrimitiveTable::*)(const float*, float*, int64_t)> {};
TEST_P(Exp2Edges, Values) {
  const std::vector<float> x{0.f,    -0.f,    1.f,     -1.f,   127.f, -126.f,
                             -127.f, -127.5f, -1000.f, -3e38f, -kInf, std::nanf("")};
  const std::vector<float> y = apply_to(primitives().*GetParam(), x);
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 1);
  EXPECT_EQ(y[2], 2);
  EXPECT_EQ(y[3], 0.5f);
  EXPECT_EQ(y[4], std::ldexp(1.f, 127));
  EXPECT_EQ(y[5], std::ldexp(1.f, -126));
  for (size_t i = 6; i < 11; ++i) EXPECT_EQ(y[i], 0) << x[i];
  EXPECT_TRUE(std::isnan(y[11]));
}

INSTANTIATE_TEST_SUITE_P(Functions, Exp2Edges, testing::Values(&PrimitiveTable::exp2_f32, &PrimitiveTable::exp2_short));

TEST(Exp2, RelativeErrorOverTheWholeRange) {
  std::vector<float> x;
  for (int i = 0; i < 2000000; ++i) x.push_back(-126.f + static_cast<float>(i) * (253.f / 2000000));
  const std::vector<float> y = apply_to(primitives().exp2_f32, x);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp2(static_cast<double>(x[i]));
    worst = std::max(worst, std::abs(y[i] - want) / want);
  }
  EXPECT_LT(worst, 2.3e-7);  // the polynomial's 9.2e-8 and two roundings
  const std::vector<float> weights = apply_to(primitives().exp2_short, x);
  worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp2(static_cast<double>(x[i]));
    worst = std::max(worst, std::abs(weights[i] - want) / want);
  }
  EXPECT_LT(worst, 3.1e-6);  // the polynomial's 2.9e-6
}

// Just below -126 the exponent field runs out: results are 0 or have lost their last bits, never garbage.
TEST(Exp2, UnderflowIsGraceful) {
  std::vector<float> x;
  for (float v = -128.f; v < -125.9f; v += 1e-4f) x.push_back(v);
  const std::vector<float> y = apply_to(primitives().exp2_f32, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp2(static_cast<double>(x[i]));
    EXPECT_GE(y[i], 0);
    EXPECT_NEAR(y[i], want, std::max(3e-7 * want, 1.2e-38)) << x[i];
  }
}

TEST(Exp2, DoubleIsExact) {
  const std::vector<double> x{0, -1, 3.25, -700.5, -1080, -INFINITY};
  std::vector<double> y(x.size());
  primitives().exp2_f64(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) EXPECT_DOUBLE_EQ(y[i], std::exp2(x[i]));
}

TEST(Tanh, ErrorAndLimits) {
  std::vector<float> x{0.f, -0.f, 50.f, -50.f, 3e38f, -3e38f, kInf, -kInf};
  for (int i = -40000; i <= 40000; ++i) x.push_back(static_cast<float>(i) * 2.5e-4f);
  const std::vector<float> y = apply_to(primitives().tanh_f32, x);
  for (size_t i = 0; i < x.size(); ++i) {
    // Near 0 the numerator 1 - e cancels: the error is that of e, absolute.
    ASSERT_NEAR(y[i], std::tanh(static_cast<double>(x[i])), 2.5e-7) << x[i];
  }
}

// ---- conversions, every bit pattern --------------------------------------------------------------------------------

float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

std::vector<uint16_t> all_halves() {
  std::vector<uint16_t> x(65536);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i);
  return x;
}

double half_value(uint16_t h) {
  const int exponent = (h >> 10) & 31, fraction = h & 1023;
  const double sign = h & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

TEST(Conversions, EveryHalfWidens) {
  const std::vector<uint16_t> x = all_halves();
  std::vector<float> by_vector(x.size()), by_scalar(x.size());
  primitives().f16_to_float(x.data(), by_vector.data(), by_scalar.data(), 65536);
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = half_value(x[i]);
    for (float got : {by_vector[i], by_scalar[i]}) {
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got)) << i;
      } else {
        ASSERT_EQ(float_to_bits(got), float_to_bits(static_cast<float>(want))) << i;
      }
    }
  }
}

TEST(Conversions, EveryBfloatWidens) {
  const std::vector<uint16_t> x = all_halves();
  std::vector<float> by_vector(x.size()), by_scalar(x.size());
  primitives().bf16_to_float(x.data(), by_vector.data(), by_scalar.data(), 65536);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(float_to_bits(by_vector[i]), static_cast<uint32_t>(i) << 16);
    ASSERT_EQ(float_to_bits(by_scalar[i]), static_cast<uint32_t>(i) << 16);
  }
}

// Floats around every number of the narrow type: itself, the midpoint to its neighbour, and a bit to either side.
std::vector<float> interesting_floats(const std::function<double(uint16_t)>& value) {
  std::vector<float> x;
  for (uint32_t h = 0; h < 0x8000; ++h) {
    const double here = value(static_cast<uint16_t>(h)), next = value(static_cast<uint16_t>(h + 1));
    if (!std::isfinite(here)) continue;
    // Past the largest number: the midpoint to where the next one would be.
    const double step = std::isfinite(next) ? next - here : here - value(static_cast<uint16_t>(h - 1));
    for (double point : {here, here + step / 2}) {
      const float f = static_cast<float>(point);
      for (float g : {std::nextafter(f, -kInf), f, std::nextafter(f, kInf)}) {
        x.push_back(g);
        x.push_back(-g);
      }
    }
  }
  for (float f :
       {kInf, -kInf, std::nanf(""), -std::nanf(""), bits_to_float(0x7f800001u), 3.4e38f, -3.4e38f, 1e-45f, -1e-45f}) {
    x.push_back(f);
  }
  while (x.size() % 64) x.push_back(0);
  return x;
}

// Nearest, ties to even, by distance to the two candidates.
uint16_t nearest(float f, const std::function<double(uint16_t)>& value, uint16_t infinity) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const double magnitude = std::abs(static_cast<double>(f));
  uint16_t lo = 0, hi = infinity;  // the last number not above the magnitude, by bisection
  if (std::isinf(f)) return sign | infinity;
  while (hi - lo > 1) {
    const uint16_t mid = static_cast<uint16_t>((lo + hi) / 2);
    if (value(mid) <= magnitude) lo = mid;
    else hi = mid;
  }
  const double step = hi == infinity ? value(lo) - value(static_cast<uint16_t>(lo - 1)) : value(hi) - value(lo);
  const double past = magnitude - value(lo);
  const bool up = past > step / 2 || (past == step / 2 && lo % 2 == 1);
  return static_cast<uint16_t>(sign | (up ? hi : lo));
}

void check_narrowing(void (*f)(const float*, uint16_t*, uint16_t*, int64_t),
                     const std::function<double(uint16_t)>& value, uint16_t infinity, bool flushes_subnormals) {
  const std::vector<float> x = interesting_floats(value);
  std::vector<uint16_t> by_vector(x.size()), by_scalar(x.size());
  f(x.data(), by_vector.data(), by_scalar.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      ASSERT_TRUE(std::isnan(value(by_vector[i])) && std::isnan(value(by_scalar[i]))) << float_to_bits(x[i]);
      continue;
    }
    const uint16_t want = nearest(x[i], value, infinity);
    ASSERT_EQ(by_scalar[i], want) << x[i];
    // vcvtne2ps2bf16 and its like flush subnormals to zero.
    if (flushes_subnormals && std::abs(x[i]) < 1.1754944e-38f) continue;
    ASSERT_EQ(by_vector[i], want) << x[i];
  }
}

double bfloat_value(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

TEST(Conversions, FloatsRoundToHalf) { check_narrowing(primitives().float_to_f16, half_value, 0x7c00, false); }
TEST(Conversions, FloatsRoundToBfloat) {
  check_narrowing(primitives().float_to_bf16, bfloat_value, 0x7f80, primitives().bf16_dot);
}

TEST(Conversions, PairsHoldBothHalves) {
  const std::vector<float> lo = interesting_floats(bfloat_value);
  std::vector<float> hi(lo.rbegin(), lo.rend());
  std::vector<uint32_t> pairs(lo.size());
  primitives().make_pairs(lo.data(), hi.data(), pairs.data(), static_cast<int64_t>(lo.size()));
  for (size_t i = 0; i < lo.size(); ++i) {
    for (int half : {0, 1}) {
      const float f = half ? hi[i] : lo[i];
      const uint16_t got = static_cast<uint16_t>(pairs[i] >> (16 * half));
      if (std::isnan(f)) {
        ASSERT_TRUE(std::isnan(bfloat_value(got)));
      } else if (std::abs(f) >= 1.1754944e-38f || !primitives().bf16_dot) {
        ASSERT_EQ(got, nearest(f, bfloat_value, 0x7f80)) << f;
      }
    }
  }
}

// ---- selection -----------------------------------------------------------------------------------------------------

TEST(MthLargest, SelectsTheSameEntriesAsSorting) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 400; ++trial) {
    const int32_t n = 1 + static_cast<int32_t>(random() % 200),
                  m = 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(n));
    const uint32_t spread = trial % 3 == 0 ? 4 : trial % 3 == 1 ? 1000 : UINT32_MAX;
    std::vector<int32_t> score(static_cast<size_t>(n) + 16, INT32_MIN);  // padding up to a vector
    for (int32_t i = 0; i < n; ++i) {
      score[static_cast<size_t>(i)] = static_cast<int32_t>(random() % spread - spread / 2);
      if (score[static_cast<size_t>(i)] == INT32_MIN)
        score[static_cast<size_t>(i)] = 0;  // below every score by contract
    }
    std::vector<int32_t> sorted(score.begin(), score.begin() + n);
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    const int32_t bound = primitives().mth_largest(score.data(), n, m), exact = sorted[static_cast<size_t>(m - 1)];
    ASSERT_LE(bound, exact);
    // No score lies between the bound and the exact threshold.
    ASSERT_EQ(std::count_if(score.begin(), score.begin() + n, [&](int32_t x) { return x >= bound && x < exact; }), 0);
  }
}

}  // namespace
}  // namespace attn
