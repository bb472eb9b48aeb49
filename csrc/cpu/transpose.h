// Rows of a tile into a panel (micro.h): a transpose in registers, lanes x lanes elements at a time.
#pragma once

#include <utility>

#include "cpu/micro.h"

ATTN_NAMESPACE_BEGIN

namespace transpose_detail {

// Blocks of S lanes: those of `a` at even places and of `b` moved one place right (low), or of `a` moved one place
// left and of `b` at odd places (high).
template <int S, int L, class V, size_t... I> ATTN_INLINE V low(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(
      a, b, (static_cast<int>(I) / S % 2 == 0 ? static_cast<int>(I) : L + static_cast<int>(I) - S)...);
}
template <int S, int L, class V, size_t... I> ATTN_INLINE V high(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(
      a, b, (static_cast<int>(I) / S % 2 == 0 ? static_cast<int>(I) + S : L + static_cast<int>(I))...);
}

// Swaps the off-diagonal S x S blocks of every 2S x 2S block; all powers of two in turn transpose.
template <int S, int L, class V> ATTN_INLINE void step(V (&r)[L]) {
  if constexpr (S < L) {
    ATTN_UNROLL
    for (int i = 0; i < L; ++i) {
      if (i & S) continue;
      const V a = r[i], b = r[i + S];
      r[i] = low<S, L>(a, b, std::make_index_sequence<L>{});
      r[i + S] = high<S, L>(a, b, std::make_index_sequence<L>{});
    }
    step<2 * S, L>(r);
  }
}

}  // namespace transpose_detail

// panel[d][lane] = rows[lane][d] for d in [0, depth), lane in [0, width). Rows from `count` on are zero. `rows` may be
// read up to the next multiple of the lanes past `depth`; width is a multiple of the lanes.
template <class T>
inline void transpose_panel(const T* rows, int64_t ld, int64_t count, int64_t depth, T* panel, int64_t width) {
  constexpr int L = Lanes<T>::n;
  using V = vec<T>;
  for (int64_t lane = 0; lane < width; lane += L) {
    for (int64_t d = 0; d < depth; d += L) {
      V r[L];
      ATTN_UNROLL
      for (int i = 0; i < L; ++i) r[i] = lane + i < count ? load(rows + (lane + i) * ld + d) : V{};
      transpose_detail::step<1, L>(r);
      T* to = panel + d * width + lane;
      if (d + L <= depth) {
        ATTN_UNROLL
        for (int i = 0; i < L; ++i) store(to + i * width, r[i]);
      } else {
        for (int i = 0; i < depth - d; ++i) store(to + i * width, r[i]);
      }
    }
  }
}

ATTN_NAMESPACE_END
