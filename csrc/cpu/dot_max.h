// Maximum of dot products, for searches: top[n] = max(top[n], max over lanes r of sum_d A[n][d] * B[d][r]). Like
// dot_panel (micro.h), but the rows of A are named by pointers, so that scattered keys are read where they lie, and
// only maxima leave the registers. A NaN product is left out. `fresh`: top is written, what it held doesn't count.
#pragma once

#include "cpu/micro.h"

ATTN_NAMESPACE_BEGIN

template <class T, int MR, int NV>
ATTN_INLINE void dot_max_block(const T* const* row, int64_t depth, const T* __restrict b, bool fresh,
                               Acc<T>* __restrict top) {
  constexpr int L = kLanes<T>;
  const T* a[MR];
  ATTN_UNROLL
  for (int m = 0; m < MR; ++m) a[m] = row[m];
  vec<Acc<T>> acc[MR][NV];
  ATTN_UNROLL
  for (int m = 0; m < MR; ++m) {
    ATTN_UNROLL
    for (int v = 0; v < NV; ++v) acc[m][v] = vec<Acc<T>>{};
  }
  for (int64_t d = 0; d < depth; ++d) {
    vec<T> bv[NV];
    ATTN_UNROLL
    for (int v = 0; v < NV; ++v) bv[v] = load(b + (d * NV + v) * L);
    ATTN_UNROLL
    for (int m = 0; m < MR; ++m) {
      const vec<T> av = splat(a[m][d]);
      ATTN_UNROLL
      for (int v = 0; v < NV; ++v) acc[m][v] = multiply_add<T>(av, bv[v], acc[m][v]);
    }
  }
  ATTN_UNROLL
  for (int m = 0; m < MR; ++m) {
    vec<Acc<T>> t = splat(-static_cast<Acc<T>>(__builtin_inff()));
    if (!fresh) t = load(top + m * L);
    ATTN_UNROLL
    for (int v = 0; v < NV; ++v) t = vmax(acc[m][v], t);
    store(top + m * L, t);
  }
}

// One panel of NV vectors against `rows` rows; top is [rows][lanes], maxima by lane. Calls between() before every
// register block, a few hundred cycles apart: the place for a few prefetches, which would stall the core in one burst.
template <class T, int NV, class F>
inline void dot_max_panel(const T* const* row, int64_t rows, int64_t depth, const T* b, bool fresh, Acc<T>* top,
                          F&& between) {
  constexpr int L = kLanes<T>;
  int64_t n = 0;
  for (; n + kDotRows <= rows; n += kDotRows) {
    between();
    dot_max_block<T, kDotRows, NV>(row + n, depth, b, fresh, top + n * L);
  }
  between();
  for (; n + 2 <= rows; n += 2) dot_max_block<T, 2, NV>(row + n, depth, b, fresh, top + n * L);
  if (n < rows) dot_max_block<T, 1, NV>(row + n, depth, b, fresh, top + n * L);
}

// best[n] = max over the lanes of top[n], for `rows` rows.
template <class A> inline void lane_maxima(const A* top, int64_t rows, A* best) {
  constexpr int L = Lanes<A>::n;
  for (int64_t n = 0; n < rows; ++n) {
    A t = top[n * L];
    for (int i = 1; i < L; ++i) t = top[n * L + i] > t ? top[n * L + i] : t;
    best[n] = t;
  }
}

// Four rows at a time: each row is folded to four lanes, and the 4 x 4 block of them transposed by two shuffles deep.
template <> inline void lane_maxima<float>(const float* top, int64_t rows, float* best) {
  typedef float quad __attribute__((vector_size(16)));
  constexpr int L = Lanes<float>::n;
  auto folded = [&](int64_t n) {
    quad x;
    std::memcpy(&x, top + n * L, sizeof x);
    ATTN_UNROLL
    for (int i = 4; i < L; i += 4) {
      quad y;
      std::memcpy(&y, top + n * L + i, sizeof y);
      x = vmax(y, x);
    }
    return x;
  };
  auto pairs = [](quad a, quad b) {
    return vmax(__builtin_shufflevector(a, b, 0, 2, 4, 6), __builtin_shufflevector(a, b, 1, 3, 5, 7));
  };
  int64_t n = 0;
  for (; n + 4 <= rows; n += 4) {
    const quad x = pairs(pairs(folded(n), folded(n + 1)), pairs(folded(n + 2), folded(n + 3)));
    std::memcpy(best + n, &x, sizeof x);
  }
  for (; n < rows; ++n) {
    const quad x = folded(n), y = pairs(x, x);
    best[n] = y[1] > y[0] ? y[1] : y[0];
  }
}

ATTN_NAMESPACE_END
