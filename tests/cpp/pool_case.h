// What tests of pooling share: rows of tokens with gaps, sequences, masks, and values that tie.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "attn/pool.h"
#include "elements.h"

namespace attn {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

enum class Values {
  normal,
  ties,      // four values, 0 among them
  rectified  // half of them exactly 0, the rest positive
};

struct PoolOptions {
  int64_t batch = 2, tokens = 20, channels = 24;
  int64_t gap = 3;    // elements between rows, NaN
  int64_t shift = 0;  // elements before the first row: 1 makes any row misaligned
  Values values = Values::normal;
  bool negative = false;  // all values below 0
  bool masked = false;    // a third of the tokens; what they hold is NaN
  bool whole = false;     // every row on 16 bytes: the vectors of the GPU's kernels
  unsigned seed = 1;
};

inline double pool_value(const PoolOptions& o, std::mt19937& random) {
  std::normal_distribution<double> normal;
  double x = normal(random);
  if (o.values == Values::ties) x = static_cast<double>(random() % 4) / 2 - 1;
  if (o.values == Values::rectified) x = std::max(0., x);
  return o.negative ? -std::abs(x) - 0.25 : x;
}

// Rows [batch, tokens, channels].
template <class E> struct TokenRows {
  using T = typename E::type;
  int64_t batch, tokens, channels, pitch, start;
  std::vector<T> data;

  TokenRows(int64_t b, int64_t l, int64_t c, int64_t gap, int64_t shift)
      : batch(b), tokens(l), channels(c), pitch(c + gap), start(shift), data(shift + b * l * (c + gap), E::put(kNan)) {}

  static TokenRows random(const PoolOptions& o, int64_t rows, std::mt19937& random) {
    const int64_t unit = 16 / static_cast<int64_t>(sizeof(T));
    const int64_t gap = o.whole ? unit - o.channels % unit : o.gap;
    TokenRows x(o.batch, rows, o.channels, gap, o.whole ? 0 : o.shift);
    for (int64_t b = 0; b < x.batch; ++b) {
      for (int64_t t = 0; t < rows; ++t) {
        for (int64_t c = 0; c < x.channels; ++c) x.at(b, t, c) = E::put(pool_value(o, random));
      }
    }
    return x;
  }

  T& at(int64_t b, int64_t t, int64_t c) { return data[start + (b * tokens + t) * pitch + c]; }
  double get(int64_t b, int64_t t, int64_t c) const { return E::get(data[start + (b * tokens + t) * pitch + c]); }
  TokenView view() { return {data.data() + start, tokens * pitch, pitch}; }
  void hide(int64_t b, int64_t t) {
    for (int64_t c = 0; c < channels; ++c) at(b, t, c) = E::put(kNan);
  }
};

// Tokens that are kept; [B, L].
struct KeptTokens {
  int64_t tokens;
  std::vector<uint8_t> data;

  KeptTokens(int64_t b, int64_t l, bool masked, std::mt19937& random) : tokens(l), data(masked ? b * l : 0) {
    for (auto& x : data) x = random() % 3 != 0;
  }
  bool operator()(int64_t b, int64_t t) const { return data.empty() || data[b * tokens + t]; }
  MaskView view() const { return {data.empty() ? nullptr : data.data(), tokens, 1}; }
};

// A contiguous result; what isn't written is NaN.
template <class E> struct PoolResult {
  std::vector<typename E::type> data;

  explicit PoolResult(int64_t n) : data(n, E::put(kNan)) {}
  double operator[](int64_t i) const { return E::get(data[i]); }
};

// How far a sum of numbers whose absolute values add up to `size` may be off, stored as E.
template <class E> inline double sum_error(double want, double size) {
  const double unit = E::dtype == DType::f64 ? 2e-15 : 4e-7;
  return 0.51 * E::eps * std::abs(want) + unit * size + 1e-30 + (E::dtype == DType::f16 ? 6e-8 : 0);
}

// Index of the greatest x[i]; the first among equals.
inline int64_t first_maximum(const std::vector<double>& x) { return std::max_element(x.begin(), x.end()) - x.begin(); }

}  // namespace attn
