// The two products and the softmax between them for a handful of query rows (decoding). A panel would leave most SIMD
// lanes empty, so features lie in lanes instead: K and V stream once from where they lie, converted in registers, and
// nothing is packed. Scores are [keys][kThinRows]: a vector holds several keys, so no lane of the exponential is idle.
#pragma once

#include <utility>

#include "cpu/mask_panel.h"

ATTN_NAMESPACE_BEGIN

// Query rows handled together: every vector of K or V that is loaded serves four multiply-adds.
constexpr int kThinRows = 4;
// Up to so many rows a tile is gone through once for every kThinRows of them; beyond, a panel is as fast.
constexpr int kThinRowsAtMost = 2 * kThinRows;
template <class A> constexpr bool kThinFits = Lanes<A>::n >= kThinRows;
template <class A> constexpr int kThinKeys = Lanes<A>::n / kThinRows;  // keys whose scores fill one vector
// Scores of a strip are rounded up to so many keys; those past its end have weight 0.
constexpr int kThinStrip = 2 * ATTN_VBYTES / 4 / kThinRows;
ATTN_INLINE int64_t round_up_thin(int64_t n) { return (n + kThinStrip - 1) / kThinStrip * kThinStrip; }

// How elements are multiplied: converted, or as bf16 pairs where the CPU has the instruction for them.
template <class In> struct ThinOperand {
  using A = std::conditional_t<std::is_same<In, double>::value, double, float>;
  using Element = A;  // of the query rows
  using V = vec<A>;
  static constexpr bool pairs = false;
  static constexpr int step = Lanes<A>::n;  // features of one vector
  static ATTN_INLINE V of_key(const In* p) { return load_as(p, A{}); }
  static ATTN_INLINE V of_query(const Element* p) { return load(p); }
  static ATTN_INLINE vec<A> dot(vec<A> acc, V x, V y) { return acc + x * y; }
};
#if ATTN_BF16_DOT
template <> struct ThinOperand<bf16> {
  using A = float;
  using Element = bf16;
  using V = u32v;
  static constexpr bool pairs = true;
  static constexpr int step = 2 * Lanes<float>::n;
  static ATTN_INLINE V of_key(const bf16* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static ATTN_INLINE V of_query(const bf16* p) { return of_key(p); }
  static ATTN_INLINE f32v dot(f32v acc, V x, V y) { return dot_pairs(acc, x, y); }
};
#endif

// Elements of a padded query row.
template <class In> ATTN_INLINE int64_t thin_width(int64_t dim) {
  constexpr int64_t step = ThinOperand<In>::step;
  return (dim + step - 1) / step * step;
}

template <class In> inline void thin_query(const In* row, int64_t dim, typename ThinOperand<In>::Element* to) {
  const int64_t width = thin_width<In>(dim);
  if constexpr (ThinOperand<In>::pairs) {
    std::memcpy(static_cast<void*>(to), row, dim * sizeof(In));
    std::memset(static_cast<void*>(to + dim), 0, (width - dim) * sizeof(In));
  } else {
    convert_row(row, dim, to, width);
  }
}

// Memory is kept busy by fetching each row of K and V kThinAhead bytes before it is used, in the order of addresses,
// which is what the hardware's own prefetching goes on from. Further ahead, rows would leave L1 again.
constexpr int64_t kThinAhead = 8192;
constexpr int kThinAheadRows = 64;  // at most
constexpr int64_t kThinMemoryPage = 4096;

template <class In> ATTN_INLINE int rows_of_bytes(int64_t bytes, int64_t dim) {
  const int64_t rows = bytes / (dim * static_cast<int64_t>(sizeof(In)));
  return rows < 1 ? 1 : rows > kThinAheadRows ? kThinAheadRows : static_cast<int>(rows);
}

// Looks up the memory pages of n rows: scattered ones miss in every buffer of address translation, which takes as long
// as fetching several lines.
template <class In> inline void touch_pages(const In* const* rows, int n, int64_t dim) {
  const int step = rows_of_bytes<In>(kThinMemoryPage, dim);
  for (int i = 0; i < n; i += step) __builtin_prefetch(rows[i], 0, 2);
}

// Addresses of a tile's rows, so that a row costs one load however its keys are scattered.
template <class In> inline void list_rows(const TokenRows<In>& t, const In** at) {
  for (int i = 0; i < t.runs; ++i) {
    const In* row = t.first(t.run[i]);
    for (int32_t j = 0; j < t.run[i].count; ++j) *at++ = row + j * t.stride;
  }
}

// s [round_up_thin(n)][kThinRows]: scores of n key rows k with the query rows q, [kThinRows][thin_width]
// zero-padded; -inf past n. `later` are n rows to fetch on the way.
template <class In, class A>
inline void thin_dot(const In* const* k, const In* const* later, int64_t n, int64_t dim,
                     const typename ThinOperand<In>::Element* q, A scale, A* s) {
  using Op = ThinOperand<In>;
  constexpr int L = Lanes<A>::n, kKeys = kThinKeys<A>;
  const int64_t width = thin_width<In>(dim), whole = dim / Op::step * Op::step;
  for (int64_t j = 0; j < n; j += kKeys) {
    const int64_t keys = n - j < kKeys ? n - j : kKeys;
    const In* row[kKeys];
    In tail[kKeys][Op::step];  // features past the last whole vector
    ATTN_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      const int64_t key = j + (i < keys ? i : 0);
      row[i] = k[key];
      prefetch_row(later[key], dim);
      if (whole < dim) {
        std::memset(static_cast<void*>(tail[i]), 0, sizeof tail[i]);
        std::memcpy(tail[i], row[i] + whole, (dim - whole) * sizeof(In));
      }
    }
    // One loop that holds the sums in registers: GCC leaves them in memory if it is written twice.
    vec<A> sum[kKeys * kThinRows] = {};
    for (int64_t d = 0; d < width; d += Op::step) {
      typename Op::V x[kKeys];
      ATTN_UNROLL
      for (int i = 0; i < kKeys; ++i) x[i] = Op::of_key(d < whole ? row[i] + d : tail[i]);
      ATTN_UNROLL
      for (int r = 0; r < kThinRows; ++r) {
        const typename Op::V qv = Op::of_query(q + r * width + d);
        ATTN_UNROLL
        for (int i = 0; i < kKeys; ++i) sum[i * kThinRows + r] = Op::dot(sum[i * kThinRows + r], x[i], qv);
      }
    }
    store(s + j * kThinRows, neighbour_sums<A, L>(sum) * scale);
  }
  for (int64_t i = n * kThinRows; i < round_up_thin(n) * kThinRows; ++i) s[i] = -kInfinity<A>;
  static_assert(kThinStrip % kKeys == 0, "a strip is whole vectors");
  static_assert(L == kKeys * kThinRows || L < kThinRows, "a vector is whole keys");
}

// The strip with one key a vector, as modify_panel takes it, and back.
template <class A> inline void thin_spread(const A* s, int64_t n, A* panel) {
  constexpr int L = Lanes<A>::n;
  std::memset(panel, 0, n * L * sizeof(A));
  for (int64_t j = 0; j < n; ++j) std::memcpy(panel + j * L, s + j * kThinRows, kThinRows * sizeof(A));
}
template <class A> inline void thin_gather(const A* panel, int64_t n, A* s) {
  constexpr int L = Lanes<A>::n;
  for (int64_t j = 0; j < n; ++j) std::memcpy(s + j * kThinRows, panel + j * L, kThinRows * sizeof(A));
}

// As softmax_panel, in place: scores become weights, m and l of the kThinRows rows are updated, alpha is set.
template <class A> inline void thin_softmax(A* s, int64_t n, A* m, A* l, A* alpha) {
  constexpr int L = Lanes<A>::n;
  const int64_t count = round_up_thin(n) * kThinRows;
  vec<A> top = splat(-kInfinity<A>);
  for (int64_t i = 0; i < count; i += L) top = vmax(load(s + i), top);
  A tops[L], reference[L];
  store(tops, top);
  for (int r = 0; r < kThinRows; ++r) {
    A fresh = m[r];
    for (int i = r; i < L; i += kThinRows) fresh = tops[i] > fresh ? tops[i] : fresh;
    const A base = fresh == -kInfinity<A> ? 0 : fresh;
    for (int i = r; i < L; i += kThinRows) {
      reference[i] = base;
      tops[i] = m[r] - base;
    }
    m[r] = fresh;
  }
  A factors[L];
  store(factors, exp2v(load(tops)));
  const vec<A> base = load(reference);
  vec<A> sum{};
  for (int64_t i = 0; i < count; i += L) {
    const vec<A> w = exp2v(load(s + i) - base);
    sum += w;
    store(s + i, w);
  }
  store(tops, sum);
  for (int r = 0; r < kThinRows; ++r) {
    A total = 0;
    for (int i = r; i < L; i += kThinRows) total += tops[i];
    alpha[r] = factors[r];
    l[r] = l[r] * factors[r] + total;
  }
}

// One vector of features.
template <class In, class A>
inline void thin_acc_block(const In* const* v, const In* const* later, int64_t n, const A* weights, const A* alpha,
                           A* o, int64_t ldo, int64_t x) {
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

// Vectors of features whose accumulators stay in registers for all rows.
constexpr int kThinVecs = ATTN_VBYTES == 64 ? 4 : 2;

template <class In, class A>
inline void thin_acc_blocks(const In* const* v, const In* const* later, int64_t n, const A* weights, const A* alpha,
                            A* o, int64_t ldo, int64_t x) {
  constexpr int L = Lanes<A>::n;
  vec<A> acc[kThinRows][kThinVecs] = {};
  for (int64_t j = 0; j < n; ++j) {
    const In* row = v[j] + x;
    prefetch_row(later[j] + x, kThinVecs * L);
    vec<A> value[kThinVecs];
    ATTN_UNROLL
    for (int i = 0; i < kThinVecs; ++i) value[i] = load_as(row + i * L, A{});
    ATTN_UNROLL
    for (int r = 0; r < kThinRows; ++r) {
      const vec<A> w = splat(weights[j * kThinRows + r]);
      ATTN_UNROLL
      for (int i = 0; i < kThinVecs; ++i) acc[r][i] += w * value[i];
    }
  }
  ATTN_UNROLL
  for (int r = 0; r < kThinRows; ++r) {
    ATTN_UNROLL
    for (int i = 0; i < kThinVecs; ++i) {
      A* at = o + r * ldo + x + i * L;
      store(at, load(at) * alpha[r] + acc[r][i]);
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

// 32 * kHalves features, two keys at a time.
template <int kHalves>
inline void thin_acc_pairs(const bf16* const* v, const bf16* const* later, int64_t n, const bf16x2* weights,
                           const float* alpha, float* o, int64_t ldo, int64_t x) {
  constexpr auto words = std::make_integer_sequence<int, 32>{};
  f32v acc[kThinRows][2 * kHalves] = {};
  // Keys j and, with `both`, j + 1.
  auto add = [&](int64_t j, auto both) {
    const bf16 *one = v[j] + x, *two = v[j + both] + x;
    prefetch_row(later[j] + x, 32 * kHalves);
    if constexpr (both) prefetch_row(later[j + 1] + x, 32 * kHalves);
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
    for (int r = 0; r < kThinRows; ++r) {
      const u32v w = splat(weights[j / 2 * kThinRows + r]);
      ATTN_UNROLL
      for (int i = 0; i < 2 * kHalves; ++i) acc[r][i] = dot_pairs(acc[r][i], value[i], w);
    }
  };
  int64_t j = 0;
  for (; j + 2 <= n; j += 2) add(j, std::integral_constant<int, 1>{});
  if (j < n) add(j, std::integral_constant<int, 0>{});
  ATTN_UNROLL
  for (int r = 0; r < kThinRows; ++r) {
    ATTN_UNROLL
    for (int i = 0; i < kHalves; ++i) {
      const f32v low = acc[r][2 * i], high = acc[r][2 * i + 1];
      float* at = o + r * ldo + x + 32 * i;
      store(at, load(at) * alpha[r] +
                    __builtin_shufflevector(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
      store(at + 16, load(at + 16) * alpha[r] + __builtin_shufflevector(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13,
                                                                        14, 15, 28, 29, 30, 31));
    }
  }
}
#endif

// o[r] = o[r] * alpha[r] + sum of weight * value row, over n rows v; weights are [n][kThinRows], rounded
// up like scores. With `guarded`, a weight of 0 silences a value row that isn't finite.
// `later` are n rows to fetch on the way, as long as those of v.
template <class In, class A>
inline void thin_acc(const In* const* v, const In* const* later, int64_t n, int64_t dim, bool guarded, const A* weights,
                     const A* alpha, A* o, int64_t ldo) {
  constexpr int L = Lanes<A>::n;
  if (guarded) {
    bool finite = true;
    for (int64_t j = 0; j < n; ++j) finite &= row_is_finite(v[j], dim);
    if (!finite) {
      for (int r = 0; r < kThinRows; ++r) {
        for (int64_t x = 0; x < dim; ++x) o[r * ldo + x] *= alpha[r];
        for (int64_t j = 0; j < n; ++j) {
          const A w = weights[j * kThinRows + r];
          for (int64_t x = 0; w != 0 && x < dim; ++x) o[r * ldo + x] += w * to_float(v[j][x]);
        }
      }
      return;
    }
  }
  int64_t x = 0;
#if ATTN_BF16_DOT
  if constexpr (ThinOperand<In>::pairs) {
    bf16x2 pairs[kTileKeys / 2 * kThinRows];
    thin_pair_weights(weights, n, pairs);
    for (; x + 64 <= dim; x += 64) thin_acc_pairs<2>(v, later, n, pairs, alpha, o, ldo, x);
    for (; x + 32 <= dim; x += 32) thin_acc_pairs<1>(v, later, n, pairs, alpha, o, ldo, x);
  }
#endif
  for (; x + kThinVecs * L <= dim; x += kThinVecs * L) thin_acc_blocks(v, later, n, weights, alpha, o, ldo, x);
  for (; x + L <= dim; x += L) thin_acc_block(v, later, n, weights, alpha, o, ldo, x);
  for (; x < dim; ++x) {
    for (int r = 0; r < kThinRows; ++r) {
      A sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += weights[j * kThinRows + r] * to_float(v[j][x]);
      o[r * ldo + x] = o[r * ldo + x] * alpha[r] + sum;
    }
  }
}

ATTN_NAMESPACE_END
