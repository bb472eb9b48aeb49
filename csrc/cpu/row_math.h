// Arithmetic on rows of the accumulation type that are padded with zeros to a multiple of the vector length.
#pragma once

#include <utility>

#include "cpu/exp.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <int H, class V, size_t... I> ATTN_INLINE V add_half(V x, std::index_sequence<I...>) {
  return x + __builtin_shufflevector(x, x, (static_cast<int>(I) ^ H)...);
}

// Halving keeps the additions independent of each other.
template <class A> ATTN_INLINE A sum_lanes(vec<A> x) {
  constexpr int L = Lanes<A>::n;
  constexpr auto lanes = std::make_index_sequence<L>{};
  if constexpr (L > 8) x = add_half<8>(x, lanes);
  if constexpr (L > 4) x = add_half<4>(x, lanes);
  if constexpr (L > 2) x = add_half<2>(x, lanes);
  return add_half<1>(x, lanes)[0];
}

template <class A> ATTN_INLINE A dot_rows(const A* x, const A* y, int64_t n) {
  vec<A> sum{};
  for (int64_t i = 0; i < n; i += Lanes<A>::n) sum += load(x + i) * load(y + i);
  return sum_lanes<A>(sum);
}

template <class A> ATTN_INLINE A sum_row(const A* x, int64_t n) {
  vec<A> sum{};
  for (int64_t i = 0; i < n; i += Lanes<A>::n) sum += load(x + i);
  return sum_lanes<A>(sum);
}

template <class A> ATTN_INLINE void add_row(A* sum, const A* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<A>::n) store(sum + i, load(sum + i) + load(x + i));
}

template <class A> ATTN_INLINE void add_scaled_row(A* sum, A weight, const A* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<A>::n) store(sum + i, load(sum + i) + weight * load(x + i));
}

template <class A> ATTN_INLINE void scale_row(A* x, A weight, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<A>::n) store(x + i, load(x + i) * weight);
}

// out[0, n) = weight * x[0, n), rounded to the element type.
template <class Out, class A> ATTN_INLINE void store_scaled_row(Out* out, A weight, const A* x, int64_t n) {
  int64_t i = 0;
  for (; i + Lanes<A>::n <= n; i += Lanes<A>::n) store_as(out + i, weight * load(x + i));
  for (; i < n; ++i) out[i] = From<Out>::of(weight * x[i]);
}

template <class Out> inline void store_zero_row(Out* out, int64_t n) {
  std::memset(static_cast<void*>(out), 0, n * sizeof(Out));
}

}  // namespace scan
ATTN_NAMESPACE_END
