// The two products for a handful of query rows (decoding). A panel would leave most SIMD lanes empty, so features lie
// in lanes instead: K and V stream once from where they lie, converted in registers, and nothing is packed.
#pragma once

#include <utility>

#include "cpu/mask_panel.h"

ATTN_NAMESPACE_BEGIN

// Query rows handled together: every vector of K or V that is loaded serves four multiply-adds.
constexpr int kThinRows = 4;
template <class A> constexpr bool kThinFits = Lanes<A>::n >= kThinRows;  // their scores have one lane a row

// Features of neighbours: (a0 + a1, a2 + a3, ..., b0 + b1, ...).
template <class V, int... I>
ATTN_INLINE V add_neighbours(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// out[i] = sum of the lanes of x[i], for as many vectors as there are lanes.
template <class A> ATTN_INLINE vec<A> sum_lanes(vec<A>* x) {
  constexpr int L = Lanes<A>::n;
  ATTN_UNROLL
  for (int n = L; n > 1; n /= 2) {
    ATTN_UNROLL
    for (int i = 0; i < n / 2; ++i) x[i] = add_neighbours(x[2 * i], x[2 * i + 1], std::make_integer_sequence<int, L>{});
  }
  return x[0];
}

// s [n][lanes]: scores of keys [first, first + n) with query row r in lane r < kThinRows (0 in the other lanes), and
// their maximum in `top`.
// q is [kThinRows][width], zero-padded.
template <class In, class A>
inline void thin_dot(const TokenRows<In>& k, int64_t first, int64_t n, const A* q, int64_t width, A scale, A* s,
                     vec<A>* top) {
  constexpr int L = Lanes<A>::n, kKeys = L / kThinRows;  // keys whose sums fill one vector
  const int64_t whole = k.dim / L * L;
  A tail[L] = {};
  for (int64_t j = 0; j < n; j += kKeys) {
    vec<A> sum[kKeys * kThinRows] = {};
    const int64_t keys = n - j < kKeys ? n - j : kKeys;
    const In* row[kKeys];
    ATTN_UNROLL
    for (int i = 0; i < kKeys; ++i) row[i] = k.row(first + j + (i < keys ? i : 0));
    for (int64_t d = 0; d < whole; d += L) {
      vec<A> x[kKeys];
      ATTN_UNROLL
      for (int i = 0; i < kKeys; ++i) x[i] = load_as(row[i] + d, A{});
      ATTN_UNROLL
      for (int r = 0; r < kThinRows; ++r) {
        const vec<A> qv = load(q + r * width + d);
        ATTN_UNROLL
        for (int i = 0; i < kKeys; ++i) sum[i * kThinRows + r] += x[i] * qv;
      }
    }
    if (whole < k.dim) {
      for (int i = 0; i < kKeys; ++i) {
        for (int64_t d = whole; d < k.dim; ++d) tail[d - whole] = to_float(row[i][d]);
        for (int r = 0; r < kThinRows; ++r) sum[i * kThinRows + r] += load(tail) * load(q + r * width + whole);
      }
    }
    A total[kKeys * kThinRows];
    store(total, sum_lanes<A>(sum) * scale);
    for (int64_t i = 0; i < keys; ++i) {
      A lanes[L] = {};
      for (int r = 0; r < kThinRows; ++r) lanes[r] = total[i * kThinRows + r];
      store(s + (j + i) * L, load(lanes));
    }
  }
  for (int64_t j = 0; j < n; ++j) *top = vmax(load(s + j * L), *top);
}

template <class In, class A, int V>
ATTN_INLINE void thin_acc_block(const TokenRows<In>& v, int64_t first, int64_t n, const A* weights, const A* alpha,
                                A* o, int64_t ldo, int64_t x) {
  constexpr int L = Lanes<A>::n;
  vec<A> acc[kThinRows][V] = {};
  for (int64_t j = 0; j < n; ++j) {
    const In* row = v.row(first + j) + x;
    vec<A> value[V];
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) value[i] = load_as(row + i * L, A{});
    ATTN_UNROLL
    for (int r = 0; r < kThinRows; ++r) {
      const vec<A> w = splat(weights[j * L + r]);
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) acc[r][i] += w * value[i];
    }
  }
  ATTN_UNROLL
  for (int r = 0; r < kThinRows; ++r) {
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      A* at = o + r * ldo + x + i * L;
      store(at, load(at) * alpha[r] + acc[r][i]);
    }
  }
}

// o[r] = o[r] * alpha[r] + sum of weight * value row, over keys [first, first + n); weights are [n][lanes]. With
// `guarded`, a weight of 0 silences a value row that isn't finite.
template <class In, class A>
inline void thin_acc(const TokenRows<In>& v, int64_t first, int64_t n, bool guarded, const A* weights, const A* alpha,
                     A* o, int64_t ldo) {
  constexpr int L = Lanes<A>::n;
  if (guarded) {
    bool finite = true;
    for (int64_t j = 0; j < n; ++j) finite &= row_is_finite(v.row(first + j), v.dim);
    if (!finite) {
      for (int r = 0; r < kThinRows; ++r) {
        for (int64_t x = 0; x < v.dim; ++x) o[r * ldo + x] *= alpha[r];
        for (int64_t j = 0; j < n; ++j) {
          const A w = weights[j * L + r];
          for (int64_t x = 0; w != 0 && x < v.dim; ++x) o[r * ldo + x] += w * to_float(v.row(first + j)[x]);
        }
      }
      return;
    }
  }
  constexpr int kVecs = kAccVecs;
  int64_t x = 0;
  for (; x + kVecs * L <= v.dim; x += kVecs * L) thin_acc_block<In, A, kVecs>(v, first, n, weights, alpha, o, ldo, x);
  for (; x + L <= v.dim; x += L) thin_acc_block<In, A, 1>(v, first, n, weights, alpha, o, ldo, x);
  for (; x < v.dim; ++x) {
    for (int r = 0; r < kThinRows; ++r) {
      A sum = 0;
      for (int64_t j = 0; j < n; ++j) sum += weights[j * L + r] * to_float(v.row(first + j)[x]);
      o[r * ldo + x] = o[r * ldo + x] * alpha[r] + sum;
    }
  }
}

ATTN_NAMESPACE_END
