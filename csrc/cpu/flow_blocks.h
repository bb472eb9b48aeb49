// Blocks of feature rows of flow attention: their loading, dot products with one vector, weighted sums, and functions
// of a block's statistics. Rows are padded with zeros.
#pragma once

#include "attn/flow.h"
#include "cpu/feature_rows.h"
#include "cpu/linear_rows.h"
#include "cpu/pack.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// dst[i][0, ld) = sigmoid(src[i][0, n)), zero from n on, for `count` rows; src[i + kRowsAhead] are fetched. Never
// inlined: every caller must round in the same way.
template <class In, class F>
__attribute__((noinline)) void sigmoid_rows(const In* const* src, int64_t count, int64_t n, F* dst, int64_t ld) {
  for (int64_t i = 0; i < count; ++i) {
    prefetch_row<2>(src[i + kRowsAhead], n);
    map_row(src[i], n, dst + i * ld, ld, [](auto x) __attribute__((always_inline)) { return sigmoidv(x); });
  }
}

#if ATTN_BF16_DOT
// A sigmoid that is rounded to the 8 bits of bf16 next: relative error 1.5e-4, a tenth of that rounding's.
ATTN_INLINE f32v rough_sigmoid(f32v x) {
#if ATTN_VBYTES == 64 && defined(__AVX512DQ__)
  const __m512 most = _mm512_set1_ps(126), one = _mm512_set1_ps(1);
  __m512 y = _mm512_mul_ps((__m512)x, _mm512_set1_ps(-static_cast<float>(kLog2e)));
  y = _mm512_max_ps(-most, _mm512_min_ps(most, y));              // of two, NaN is the second
  const f32v f = (f32v)_mm512_maskz_reduce_ps(0xffff, y, 0x01);  // y - floor(y)
  const f32v power = ((7.70672e-2f * f + 2.2764482e-1f) * f + 6.9511682e-1f) * f + 1;
  return (f32v)_mm512_rcp14_ps(one + _mm512_scalef_ps((__m512)power, y));
#else
  return sigmoidv(x);
#endif
}

template <>
__attribute__((noinline)) inline void sigmoid_rows<bf16, bf16>(const bf16* const* src, int64_t count, int64_t n,
                                                               bf16* dst, int64_t ld) {
  constexpr int64_t step = 2 * Lanes<float>::n;
  const auto of = [](u32v pairs) __attribute__((always_inline)) {
    return make_pairs(rough_sigmoid(bit_cast<f32v>(pairs << 16)), rough_sigmoid(bit_cast<f32v>(pairs & 0xffff0000u)));
  };
  const int64_t whole = n / step * step;
  for (int64_t i = 0; i < count; ++i) {
    prefetch_row<2>(src[i + kRowsAhead], n);
    const bf16* from = src[i];
    bf16* to = dst + i * ld;
    for (int64_t x = 0; x < whole; x += step) {
      store(reinterpret_cast<bf16x2*>(to + x), of(Pack<bf16x2, bf16>::vector(from + x)));
    }
    if (whole < n) {
      bf16 rest[step] = {};
      std::memcpy(rest, from + whole, (n - whole) * sizeof(bf16));
      store(reinterpret_cast<bf16x2*>(rest), of(Pack<bf16x2, bf16>::vector(rest)));
      std::memset(static_cast<void*>(rest + n - whole), 0, (step - n + whole) * sizeof(bf16));
      std::memcpy(to + whole, rest, sizeof rest);
    }
  }
}
#endif

// What features are kept as: bf16 where their products multiply bf16 pairs, else the accumulation type.
template <class T> struct FeatureOf { using type = Acc<T>; };
template <> struct FeatureOf<bf16x2> { using type = bf16; };

// Lanes that a row of features in memory fills: whole vectors in either form.
template <class T> ATTN_INLINE int64_t feature_width(int64_t n) {
  const int64_t step = kPair<T> * kLanes<T>;
  return (n + step - 1) / step * step;
}

// Partial sums of row . w: of rows of the accumulation type, or of bf16 pairs against w as the sum of two bf16.
template <class A> struct DotRows {
  using Row = A;
  const A* w;
  int64_t ld;
  DotRows(const A* vector, int64_t n) : w(vector), ld(n) {}
  ATTN_INLINE vec<A> dot(const A* row) const {
    vec<A> sum{};
    for (int64_t x = 0; x < ld; x += Lanes<A>::n) sum += load(row + x) * load(w + x);
    return sum;
  }
  // Of N rows.
  template <int N> ATTN_INLINE void dots(const A* rows, vec<A>* sum) const {
    ATTN_UNROLL
    for (int r = 0; r < N; ++r) sum[r] = vec<A>{};
    for (int64_t x = 0; x < ld; x += Lanes<A>::n) {
      const vec<A> wx = load(w + x);
      const A* at = rows + x;
      ATTN_UNROLL
      for (int r = 0; r < N; ++r, at += ld) sum[r] += load(at) * wx;
    }
  }
};

#if ATTN_BF16_DOT
struct DotPairs {
  using Row = bf16;
  static constexpr int64_t kMost = 512;  // features
  bf16 high[kMost], low[kMost];
  const float* w;
  int64_t ld;
  DotPairs(const float* vector, int64_t n) : w(vector), ld(n) {
    if (n > kMost) return;
    for (int64_t x = 0; x < n; x += Lanes<float>::n) {
      store_as(high + x, load(w + x));
      store_as(low + x, load(w + x) - load_as(high + x, float{}));
    }
  }
  ATTN_INLINE f32v dot(const bf16* row) const {
    f32v sum{}, rest{};
    if (ld > kMost) {
      for (int64_t x = 0; x < ld; x += Lanes<float>::n) sum += load_as(row + x, float{}) * load(w + x);
      return sum;
    }
    for (int64_t x = 0; x < ld; x += 2 * Lanes<float>::n) {
      const u32v pairs = pairs_at(row + x);
      sum = dot_pairs(sum, pairs, pairs_at(high + x));
      rest = dot_pairs(rest, pairs, pairs_at(low + x));
    }
    return sum + rest;
  }
  template <int N> ATTN_INLINE void dots(const bf16* rows, f32v* sum) const {
    ATTN_UNROLL
    for (int r = 0; r < N; ++r) sum[r] = dot(rows + r * ld);
  }
  static ATTN_INLINE u32v pairs_at(const bf16* p) { return load(reinterpret_cast<const bf16x2*>(p)); }
};
#endif

template <class F> struct RowDot { using type = DotRows<F>; };
#if ATTN_BF16_DOT
template <> struct RowDot<bf16> { using type = DotPairs; };
#endif

// out[i] = rows_i . w. As many rows as lanes at a time: their sums are added up together.
template <class F, class A>
__attribute__((noinline)) void dot_block_rows(const F* rows, int64_t ld, int64_t n, const A* w, A* out) {
  constexpr int L = Lanes<A>::n;
  const typename RowDot<F>::type with(w, ld);
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    vec<A> sum[L];
    with.template dots<L>(rows + i * ld, sum);
    store(out + i, neighbour_sums<A, L>(sum));
  }
  for (; i < n; ++i) out[i] = sum_lanes<A>(with.dot(rows + i * ld));
}

// The same for two vectors, to the last bit.
template <class F, class A>
__attribute__((noinline)) void dot_block_rows_twice(const F* rows, int64_t ld, int64_t n, const A* u, const A* w,
                                                    A* with_u, A* with_w) {
  constexpr int L = Lanes<A>::n;
  const typename RowDot<F>::type of_u(u, ld), of_w(w, ld);
  int64_t i = 0;
  for (; i + L / 2 <= n; i += L / 2) {
    vec<A> sum[L];
    of_u.template dots<L / 2>(rows + i * ld, sum);
    of_w.template dots<L / 2>(rows + i * ld, sum + L / 2);
    const vec<A> both = neighbour_sums<A, L>(sum);
    std::memcpy(with_u + i, &both, L / 2 * sizeof(A));
    std::memcpy(with_w + i, reinterpret_cast<const A*>(&both) + L / 2, L / 2 * sizeof(A));
  }
  for (; i < n; ++i) {
    with_u[i] = sum_lanes<A>(of_u.dot(rows + i * ld));
    with_w[i] = sum_lanes<A>(of_w.dot(rows + i * ld));
  }
}

// sum += sum_i weight_i rows_i; weight null = 1.
template <class A>
__attribute__((noinline)) void add_block_rows(const A* rows, int64_t ld, int64_t n, const A* weight, A* sum) {
  constexpr int L = Lanes<A>::n;
  for (int64_t x = 0; x < ld; x += 4 * L) {
    const int64_t left = (ld - x) / L;
    if (left >= 4) {
      vec<A> s0{}, s1{}, s2{}, s3{};
      for (int64_t i = 0; i < n; ++i) {
        const A* r = rows + i * ld + x;
        const vec<A> w = splat(weight ? weight[i] : A{1});
        s0 += w * load(r);
        s1 += w * load(r + L);
        s2 += w * load(r + 2 * L);
        s3 += w * load(r + 3 * L);
      }
      store(sum + x, load(sum + x) + s0);
      store(sum + x + L, load(sum + x + L) + s1);
      store(sum + x + 2 * L, load(sum + x + 2 * L) + s2);
      store(sum + x + 3 * L, load(sum + x + 3 * L) + s3);
    } else {
      for (int64_t v = 0; v < left; ++v) {
        vec<A> s{};
        for (int64_t i = 0; i < n; ++i) s += splat(weight ? weight[i] : A{1}) * load(rows + i * ld + x + v * L);
        store(sum + x + v * L, load(sum + x + v * L) + s);
      }
    }
  }
}

#if ATTN_BF16_DOT
// a0, b0, a1, b1, ... of the lanes from `from` on.
template <int From, int... I> ATTN_INLINE f32v interleave(f32v a, f32v b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (From + I / 2 + I % 2 * static_cast<int>(sizeof...(I)))...);
}

// The same for bf16 rows: even and odd features are summed apart and put back into their order at the end.
__attribute__((noinline)) inline void add_block_rows(const bf16* rows, int64_t ld, int64_t n, const float* weight,
                                                     float* sum) {
  constexpr int L = Lanes<float>::n;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
  const auto add = [](f32v(&at)[2], const bf16* row, f32v w) __attribute__((always_inline)) {
    const u32v pairs = load(reinterpret_cast<const bf16x2*>(row));
    at[0] += w * bit_cast<f32v>(pairs << 16);
    at[1] += w * bit_cast<f32v>(pairs & 0xffff0000u);
  };
  for (int64_t x = 0; x < ld; x += 2 * L) {
    f32v one[2] = {}, two[2] = {};
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) {
      add(one, rows + i * ld + x, splat(weight ? weight[i] : 1.0f));
      add(two, rows + (i + 1) * ld + x, splat(weight ? weight[i + 1] : 1.0f));
    }
    if (i < n) add(one, rows + i * ld + x, splat(weight ? weight[i] : 1.0f));
    const f32v even = one[0] + two[0], odd = one[1] + two[1];
    store(sum + x, load(sum + x) + interleave<0>(even, odd, lanes));
    store(sum + x + L, load(sum + x + L) + interleave<L / 2>(even, odd, lanes));
  }
}
#endif

// Prefix sums and what they meet: for each row in turn, source += wk_i k_i and sink += wq_i q_i (weights null = 1),
// then
//   to_sink[i] = (q_i + eps) . (source + eps)     to_source[i] = (k_i + eps) . (sink + eps)
// over the first `dim` of `ld` components.
template <class A>
__attribute__((noinline)) void prefix_dots(const A* q, const A* k, int64_t ld, int64_t dim, int64_t n, const A* wq,
                                           const A* wk, A eps, A* sink, A* source, A* to_sink, A* to_source) {
  constexpr int L = Lanes<A>::n;
  const A padding = (ld - dim) * eps * eps;
  for (int64_t i = 0; i < n; ++i) {
    const A *qi = q + i * ld, *ki = k + i * ld;
    const vec<A> a = splat(wq ? wq[i] : A{1}), b = splat(wk ? wk[i] : A{1});
    vec<A> x{}, y{};
    for (int64_t f = 0; f < ld; f += L) {
      const vec<A> qf = load(qi + f), kf = load(ki + f);
      const vec<A> sources = load(source + f) + b * kf, sinks = load(sink + f) + a * qf;
      store(source + f, sources);
      store(sink + f, sinks);
      x += (qf + eps) * (sources + eps);
      y += (kf + eps) * (sinks + eps);
    }
    to_sink[i] = sum_lanes<A>(x) - padding;
    to_source[i] = sum_lanes<A>(y) - padding;
  }
}

// a . b over n elements.
template <class A, class X, class Y> ATTN_INLINE A dot_elements_as(const X* a, const Y* b, int64_t n) {
  constexpr int L = Lanes<A>::n;
  vec<A> sum{};
  int64_t i = 0;
  for (; i + L <= n; i += L) sum += load_as(a + i, A{}) * load_as(b + i, A{});
  if (i < n) sum += load_part<A>(a + i, n - i) * load_part<A>(b + i, n - i);
  return sum_lanes<A>(sum);
}

// to[0, dim) = d f (1 - f), the gradient through f = sigmoid(x).
template <class A, class Out> ATTN_INLINE void store_logistic_gradient(const A* f, A* d, int64_t ld, int64_t dim,
                                                                       Out* to) {
  for (int64_t x = 0; x < ld; x += Lanes<A>::n) {
    const vec<A> y = load(f + x);
    store(d + x, load(d + x) * (y * (1 - y)));
  }
  store_scaled_row(to, A{1}, d, dim);
}

// y[i] = exp(x[i] - top)
template <class A> inline void exp_block(const A* x, int64_t n, A top, A* y) {
  constexpr int L = Lanes<A>::n;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(y + i, exp_full(load(x + i) - top));
  if (i < n) {
    const vec<A> rest = exp_full(load_part<A>(x + i, n - i) - top);
    std::memcpy(y + i, &rest, (n - i) * sizeof(A));
  }
}

// y[i] = exp(cut x[i] - top); returns their sum.
template <class A> inline A compete_block(const A* x, int64_t n, A clamp, A top, A* y) {
  constexpr int L = Lanes<A>::n;
  const vec<A> most = splat(clamp), least = splat(-clamp);
  const auto of = [&](vec<A> v) { return exp_full((v > most ? most : v < least ? least : v) - top); };
  vec<A> sum{};
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const vec<A> e = of(load(x + i));
    store(y + i, e);
    sum += e;
  }
  A total = sum_lanes<A>(sum);
  if (i < n) {
    const vec<A> rest = of(load_part<A>(x + i, n - i));
    std::memcpy(y + i, &rest, (n - i) * sizeof(A));
    for (; i < n; ++i) total += y[i];
  }
  return total;
}

template <class A> inline void sigmoid_block(const A* x, int64_t n, A factor, A* y) {
  constexpr int L = Lanes<A>::n;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(y + i, sigmoidv(load(x + i) * factor));
  if (i < n) {
    const vec<A> rest = sigmoidv(load_part<A>(x + i, n - i) * factor);
    std::memcpy(y + i, &rest, (n - i) * sizeof(A));
  }
}

}  // namespace scan
ATTN_NAMESPACE_END
