// Weighted sums of value rows for a handful of query rows (thin_panel.h): features lie in lanes, and values stream from
// where they lie.
#pragma once

#include "cpu/thin_panel.h"

ATTN_NAMESPACE_BEGIN

// One vector of features.
template <class In, class A, class Rows, class Later>
inline void thin_acc_block(Rows v, Later later, int64_t n, const A* weights, const A* alpha, A* o, int64_t ldo,
                           int64_t x) {
  vec<A> acc[kThinRows] = {};
  for (int64_t j = 0; j < n; ++j) {
    prefetch_row(later[j] + x, Lanes<A>::n);
    const vec<A> value = load_as(v[j] + x, A{});
    ATTN_UNROLL
    for (int r = 0; r < kThinRows; ++r) acc[r] += splat(weights[j * kThinRows + r]) * value;
  }
  ATTN_UNROLL
  for (int r = 0; r < kThinRows; ++r) store(o + r * ldo + x, load(o + r * ldo + x) * alpha[r] + acc[r]);
}

// Features are gone through in blocks whose accumulators stay in registers: of a narrow block for all rows, of a wide
// one, where there are registers for it, for half of them at a time, so that a long row is read in one go.
constexpr int kThinVecs = ATTN_VBYTES == 64 ? 4 : 2;

// Fetches part j of 2 n of n rows, in the order of addresses.
template <class Later> ATTN_INLINE void prefetch_half(Later later, int64_t j, int64_t width) {
  prefetch_row(later.half(j, width), width / 2);
}

// Rows [first, first + kRows), kVecs vectors of features.
template <int kRows, int kVecs, class In, class A, class Rows, class Later>
inline void thin_acc_blocks(Rows v, Later later, int64_t n, int first, const A* weights, const A* alpha, A* o,
                            int64_t ldo, int64_t x) {
  constexpr int L = Lanes<A>::n;
  vec<A> acc[kRows][kVecs] = {};
  for (int64_t j = 0; j < n; ++j) {
    const In* row = v[j] + x;
    if constexpr (kRows == kThinRows) prefetch_row(later[j] + x, kVecs * L);
    else prefetch_half(later, first ? n + j : j, kVecs * L);
    vec<A> value[kVecs];
    ATTN_UNROLL
    for (int i = 0; i < kVecs; ++i) value[i] = load_as(row + i * L, A{});
    ATTN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const vec<A> w = splat(weights[j * kThinRows + first + r]);
      ATTN_UNROLL
      for (int i = 0; i < kVecs; ++i) acc[r][i] += w * value[i];
    }
  }
  ATTN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ATTN_UNROLL
    for (int i = 0; i < kVecs; ++i) {
      A* at = o + (first + r) * ldo + x + i * L;
      store(at, load(at) * alpha[first + r] + acc[r][i]);
    }
  }
}

#if ATTN_BF16_DOT
static_assert(ATTN_VBYTES == 64, "the shuffles below are written for 64-byte vectors");
typedef uint16_t u16v __attribute__((vector_size(ATTN_VBYTES)));

// (a0, b0, a1, b1, ...) of the lower, of the upper half of every 16-byte lane: one instruction each.
template <int... I> ATTN_INLINE u32v interleave_low(u16v a, u16v b, std::integer_sequence<int, I...>) {
  return bit_cast<u32v>(__builtin_shufflevector(a, b, (I / 8 * 8 + I % 8 / 2 + I % 2 * 32)...));
}
template <int... I> ATTN_INLINE u32v interleave_high(u16v a, u16v b, std::integer_sequence<int, I...>) {
  return bit_cast<u32v>(__builtin_shufflevector(a, b, (I / 8 * 8 + 4 + I % 8 / 2 + I % 2 * 32)...));
}

// Weights of keys 2i and 2i + 1 as a bf16 pair, [keys / 2][kThinRows].
inline void thin_pair_weights(const float* weights, int64_t n, bf16x2* pairs) {
  for (int64_t j = 0; j < n; j += kThinStrip) {
    const f32v a = load(weights + j * kThinRows), b = load(weights + j * kThinRows + 16);
    const f32v even = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    const f32v odd = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    store(pairs + j / 2 * kThinRows, make_pairs(even, odd));
  }
}

// Rows [first, first + kRows), 32 * kHalves features, two keys at a time. Features of o stay in the order of the
// interleaved vectors (thin_column).
template <int kRows, int kHalves, class Rows, class Later>
inline void thin_acc_pairs(Rows v, Later later, int64_t n, int first, const bf16x2* weights, const float* alpha,
                           float* o, int64_t ldo, int64_t x, ThinLines lines) {
  constexpr auto words = std::make_integer_sequence<int, 32>{};
  f32v acc[kRows][2 * kHalves] = {};
  // Keys j and, with `both`, j + 1.
  auto add = [&](int64_t j, auto both) {
    lines.fetch(j / 2);
    const bf16 *one = v[j] + x, *two = v[j + both] + x;
    for (int i = 0; i <= both; ++i) {
      if constexpr (kRows == kThinRows) prefetch_row(later[j + i] + x, 32 * kHalves);
      else prefetch_half(later, first ? n + j + i : j + i, 32 * kHalves);
    }
    u32v value[2 * kHalves];
    ATTN_UNROLL
    for (int i = 0; i < kHalves; ++i) {
      u16v a, b{};
      std::memcpy(&a, one + 32 * i, sizeof a);
      if constexpr (both) std::memcpy(&b, two + 32 * i, sizeof b);
      value[2 * i] = interleave_low(a, b, words);
      value[2 * i + 1] = interleave_high(a, b, words);
    }
    ATTN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const u32v w = splat(weights[j / 2 * kThinRows + first + r]);
      ATTN_UNROLL
      for (int i = 0; i < 2 * kHalves; ++i) acc[r][i] = dot_pairs(acc[r][i], value[i], w);
    }
  };
  int64_t j = 0;
  for (; j + 2 <= n; j += 2) add(j, std::integral_constant<int, 1>{});
  if (j < n) add(j, std::integral_constant<int, 0>{});
  ATTN_UNROLL
  for (int r = 0; r < kRows; ++r) {
    ATTN_UNROLL
    for (int i = 0; i < 2 * kHalves; ++i) {
      float* at = o + (first + r) * ldo + x + 16 * i;
      store(at, load(at) * alpha[first + r] + acc[r][i]);
    }
  }
}
#endif

// Where feature x of a row lies in o until thin_order puts all in their places.
template <class In> ATTN_INLINE int64_t thin_column(int64_t x, int64_t dim) {
  if (!ThinOperand<In>::pairs || x >= dim / 32 * 32) return x;
  return x / 32 * 32 + x % 8 / 4 * 16 + x % 32 / 8 * 4 + x % 4;
}
template <class In, class A> inline void thin_order(A* o, int64_t ldo, int64_t rows, int64_t dim) {
  if constexpr (ThinOperand<In>::pairs) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t x = 0; x + 32 <= dim; x += 32) {
        A block[32];
        std::memcpy(block, o + r * ldo + x, sizeof block);
        for (int64_t i = 0; i < 32; ++i) o[r * ldo + x + i] = block[thin_column<In>(i, 32)];
      }
    }
  }
}

// o[r] = o[r] * alpha[r] + sum of weight * value row, over n rows v; weights are [n][kThinRows], rounded
// up like scores. With `guarded`, a weight of 0 silences a value row that isn't finite.
// n is at most kThinPanelAtMost; `later` are n rows to fetch on the way.
template <class In, class A, class Rows, class Later>
inline void thin_acc(Rows v, Later later, int64_t n, int64_t dim, bool guarded, const A* weights, const A* alpha, A* o,
                     int64_t ldo, [[maybe_unused]] ThinLines lines) {
  constexpr int L = Lanes<A>::n;
  if (guarded) {
    bool finite = true;
    for (int64_t j = 0; j < n; ++j) finite &= row_is_finite(v[j], dim);
    if (!finite) {
      for (int r = 0; r < kThinRows; ++r) {
        for (int64_t x = 0; x < dim; ++x) o[r * ldo + x] *= alpha[r];
        for (int64_t j = 0; j < n; ++j) {
          const A w = weights[j * kThinRows + r];
          for (int64_t x = 0; w != 0 && x < dim; ++x) o[r * ldo + thin_column<In>(x, dim)] += w * to_float(v[j][x]);
        }
      }
      return;
    }
  }
  int64_t x = 0;
#if ATTN_BF16_DOT
  if constexpr (ThinOperand<In>::pairs) {
    bf16x2 pairs[kThinPanelAtMost / 2 * kThinRows];
    thin_pair_weights(weights, n, pairs);
    for (; x + 128 <= dim; x += 128) {
      for (int r = 0; r < kThinRows; r += 2) thin_acc_pairs<2, 4>(v, later, n, r, pairs, alpha, o, ldo, x, lines);
    }
    for (; x + 64 <= dim; x += 64) thin_acc_pairs<kThinRows, 2>(v, later, n, 0, pairs, alpha, o, ldo, x, lines);
    for (; x + 32 <= dim; x += 32) thin_acc_pairs<kThinRows, 1>(v, later, n, 0, pairs, alpha, o, ldo, x, lines);
  }
#endif
  constexpr int kVecs = kThinVecs;
  if constexpr (ATTN_VBYTES == 64) {
    for (; x + 2 * kVecs * L <= dim; x += 2 * kVecs * L) {
      for (int r = 0; r < kThinRows; r += 2)
        thin_acc_blocks<2, 2 * kVecs, In>(v, later, n, r, weights, alpha, o, ldo, x);
    }
  }
  for (; x + kVecs * L <= dim; x += kVecs * L)
    thin_acc_blocks<kThinRows, kVecs, In>(v, later, n, 0, weights, alpha, o, ldo, x);
  for (; x + L <= dim; x += L) thin_acc_block<In>(v, later, n, weights, alpha, o, ldo, x);
  for (; x < dim; ++x) {
    for (int r = 0; r < kThinRows; ++r) {
      A sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += weights[j * kThinRows + r] * to_float(v[j][x]);
      o[r * ldo + x] = o[r * ldo + x] * alpha[r] + sum;
    }
  }
}

ATTN_NAMESPACE_END
