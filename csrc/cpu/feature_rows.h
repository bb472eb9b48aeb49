// Feature maps on rows: from a tensor's element type to padded rows of the accumulation type, and their gradient.
#pragma once

#include "attn/feature_map.h"
#include "cpu/exp.h"
#include "cpu/row_math.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// e^x over its whole range: the float exp2v takes exponents below 127 only.
ATTN_INLINE f32v exp_full(f32v x) {
  const f32v y = x * static_cast<float>(kLog2e), lifted = y - 64 > 127 ? f32v{} + 127 : y - 64;
  const float big = 18446744073709551616.0f;  // 2^64
  return exp2v(y > 126 ? lifted : y) * (y > 126 ? f32v{} + big : f32v{} + 1);
}
ATTN_INLINE f64v exp_full(f64v x) { return exp2v(x * kLog2e); }

// e^x where a huge result only has to be huge.
template <class V> ATTN_INLINE V exp_capped(V x) {
  using S = std::remove_reference_t<decltype(x[0])>;
  const V y = x * static_cast<S>(kLog2e);
  return exp2v(y > 126 ? V{} + 126 : y);
}

// 1 / x for x >= 1, not a NaN's or an infinity's: an estimate and a Newton step where the CPU has one, which costs less
// than a division and is as good to the last bit or two.
ATTN_INLINE f64v reciprocal(f64v x) { return 1 / x; }
ATTN_INLINE f32v reciprocal(f32v x) {
#if ATTN_VBYTES == 64 && defined(__AVX512F__)
  const f32v y = (f32v)_mm512_rcp14_ps((__m512)x);
  return y + y * (1 - x * y);
#else
  return 1 / x;
#endif
}

template <class V> ATTN_INLINE V sigmoidv(V x) { return reciprocal(1 + exp_capped(-x)); }
#if ATTN_VBYTES == 64 && defined(__AVX512DQ__)
// The same, without what the exponential does for results that are lost in the sum.
ATTN_INLINE f32v sigmoidv(f32v x) {
  const __m512 y = _mm512_min_ps(_mm512_set1_ps(126), (__m512)(x * -static_cast<float>(kLog2e)));  // NaN is the second
  return reciprocal(1 +
                    (f32v)_mm512_scalef_ps((__m512)exp2_fraction<5>((f32v)_mm512_maskz_reduce_ps(0xffff, y, 0x01)), y));
}
#endif

template <class A, class In> ATTN_INLINE vec<A> load_part(const In* p, int64_t n) {
  In copy[Lanes<A>::n] = {};
  std::memcpy(copy, p, n * sizeof(In));
  return load_as(copy, A{});
}

// The vector at i of a row of n, padded with zeros.
template <class A, class In> ATTN_INLINE vec<A> row_part(const In* row, int64_t i, int64_t n) {
  if (i + Lanes<A>::n <= n) return load_as(row + i, A{});
  return i < n ? load_part<A>(row + i, n - i) : vec<A>{};
}

// dst[0, ld) = f(src[0, n)), zero from n on. Out: the accumulation type, or a narrower one.
template <class In, class Out, class F> ATTN_INLINE void map_row(const In* src, int64_t n, Out* dst, int64_t ld, F f) {
  using A = std::conditional_t<std::is_same_v<Out, double>, double, float>;
  constexpr int L = Lanes<A>::n;
  int64_t i = 0;
  for (; i + L <= n; i += L) store_as(dst + i, f(load_as(src + i, A{})));
  if (i < n) {
    vec<A> y = f(load_part<A>(src + i, n - i));
    for (int64_t j = n - i; j < L; ++j) y[j] = 0;
    store_as(dst + i, y);
    i += L;
  }
  for (; i < ld; i += L) store_as(dst + i, vec<A>{});
}

template <class In, class A> inline void load_row(const In* src, int64_t n, A* dst, int64_t ld) {
  map_row(src, n, dst, ld, [](vec<A> x) { return x; });
}

template <class A> inline void zero_row(A* dst, int64_t ld) {
  for (int64_t i = 0; i < ld; i += Lanes<A>::n) store(dst + i, vec<A>{});
}

// ---- taylor2 -------------------------------------------------------------------------------------------------------

template <class A> struct Taylor2Scale {
  A first, square, pair;
  explicit Taylor2Scale(int64_t dim)
      : first(static_cast<A>(std::pow(static_cast<double>(dim), -0.25))),
        square(static_cast<A>(1 / std::sqrt(2.0 * dim))), pair(static_cast<A>(1 / std::sqrt(1.0 * dim))) {}
};

template <class In, class A> inline void taylor2_row(const In* src, int64_t n, A* dst, int64_t ld) {
  const Taylor2Scale<A> scale(n);
  A* at = dst;
  *at++ = 1;
  for (int64_t a = 0; a < n; ++a) *at++ = to_float(src[a]) * scale.first;
  for (int64_t a = 0; a < n; ++a) {
    const A x = to_float(src[a]), weighted = x * scale.pair;
    *at++ = x * x * scale.square;
    for (int64_t b = a + 1; b < n; ++b) *at++ = weighted * to_float(src[b]);
  }
  while (at < dst + ld) *at++ = 0;
}

template <class In, class A> inline void taylor2_gradient(const In* src, int64_t n, const A* df, In* dx, A* sum) {
  const Taylor2Scale<A> scale(n);
  for (int64_t a = 0; a < n; ++a) sum[a] = df[1 + a] * scale.first;
  const A* at = df + 1 + n;
  for (int64_t a = 0; a < n; ++a) {
    const A x = to_float(src[a]) * scale.pair;
    A own = 2 * to_float(src[a]) * scale.square * *at++;
    for (int64_t b = a + 1; b < n; ++b, ++at) {
      own += *at * scale.pair * to_float(src[b]);
      sum[b] += *at * x;
    }
    sum[a] += own;
  }
  for (int64_t a = 0; a < n; ++a) dx[a] = From<In>::of(sum[a]);
}

// ---- by map --------------------------------------------------------------------------------------------------------

template <FeatureMap M, class V> ATTN_INLINE V feature_vector(V x) {
  if constexpr (M == FeatureMap::sigmoid) return sigmoidv(x);
  else if constexpr (M == FeatureMap::exp) return feature_value<M>(x, [](V y) { return exp_full(y); });
  else return feature_value<M>(x, [](V y) { return exp_capped(y); });
}

// dst[0, ld) = phi(src[0, n)), zero past the features. Never inlined: every caller must round in the same way.
template <class In, class A>
__attribute__((noinline)) void feature_row(FeatureMap map, const In* src, int64_t n, A* dst, int64_t ld) {
  using V = vec<A>;
  switch (map) {
    case FeatureMap::elu1: return map_row(src, n, dst, ld, [](V x) { return feature_vector<FeatureMap::elu1>(x); });
    case FeatureMap::relu: return map_row(src, n, dst, ld, [](V x) { return feature_vector<FeatureMap::relu>(x); });
    case FeatureMap::exp: return map_row(src, n, dst, ld, [](V x) { return feature_vector<FeatureMap::exp>(x); });
    case FeatureMap::identity: return load_row(src, n, dst, ld);
    case FeatureMap::sigmoid:
      return map_row(src, n, dst, ld, [](V x) { return feature_vector<FeatureMap::sigmoid>(x); });
    case FeatureMap::taylor2: return taylor2_row(src, n, dst, ld);
  }
}

// dx[0, n) = df[0, n) phi'(src[0, n)), element by element.
template <FeatureMap M, class In, class A> inline void slope_row(const In* src, int64_t n, const A* df, In* dx) {
  constexpr int L = Lanes<A>::n;
  const auto chain = [](vec<A> x, vec<A> d) { return d * feature_slope<M>(x, feature_vector<M>(x)); };
  int64_t i = 0;
  for (; i + L <= n; i += L) store_as(dx + i, chain(load_as(src + i, A{}), load(df + i)));
  if (i < n) {
    In rest[L];
    store_as(rest, chain(load_part<A>(src + i, n - i), load(df + i)));
    std::memcpy(static_cast<void*>(dx + i), rest, (n - i) * sizeof(In));
  }
}

// dx[0, n) from df, the gradient of the features (padded rows). `scratch` holds n.
template <class In, class A>
inline void feature_gradient(FeatureMap map, const In* src, int64_t n, const A* df, In* dx, A* scratch) {
  switch (map) {
    case FeatureMap::elu1: return slope_row<FeatureMap::elu1>(src, n, df, dx);
    case FeatureMap::relu: return slope_row<FeatureMap::relu>(src, n, df, dx);
    case FeatureMap::exp: return slope_row<FeatureMap::exp>(src, n, df, dx);
    case FeatureMap::identity: return slope_row<FeatureMap::identity>(src, n, df, dx);
    case FeatureMap::sigmoid: return slope_row<FeatureMap::sigmoid>(src, n, df, dx);
    case FeatureMap::taylor2: return taylor2_gradient(src, n, df, dx, scratch);
  }
}

}  // namespace scan
ATTN_NAMESPACE_END
