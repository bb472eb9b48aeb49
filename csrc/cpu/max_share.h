// How the gradient of a maximum over rows is handed out to the rows, where the rows may come in several parts.
#pragma once

#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

// Number of rows that equal m, per channel.
template <class T>
inline void count_equal(const T* const* rows, int64_t rows_n, const Sum<T>* m, Sum<T>* count, int64_t n) {
  using S = Sum<T>;
  clear_row(count, n);
  for (int64_t r = 0; r < rows_n; ++r) {
    for_lanes<S>(n, [&](int64_t i, auto w) {
      const vec<S> zero{};
      put(count + i, get(count + i, w) + (get(rows[r] + i, w) == get(m + i, w) ? splat(S{1}) : zero), w);
    });
  }
}

// share /= count, 0 where the count is 0.
template <class S> inline void divide_row(S* share, const S* count, int64_t n) {
  for_lanes<S>(n, [&](int64_t i, auto w) {
    const vec<S> c = get(count + i, w), zero{};
    put(share + i, c > 0 ? get(share + i, w) / (c > 0 ? c : splat(S{1})) : zero, w);
  });
}

// Gradient of one row: its share where it is the maximum. With `once` (tie rule "first") a share is used up.
template <class T>
ATTN_INLINE void take_share(const T* x, const Sum<T>* m, Sum<T>* share, bool once, T* dx, int64_t n) {
  using S = Sum<T>;
  for_lanes<S>(n, [&](int64_t i, auto w) {
    const vec<S> g = get(share + i, w), zero{};
    const auto hit = get(x + i, w) == get(m + i, w);
    put(dx + i, hit ? g : zero, w);
    if (once) put(share + i, hit ? zero : g, w);
  });
}

// The maximum over parts and each part's share of `gradient` [n] (overwritten). maximum(i) and share(i) are rows of
// part i: its own maximum and, for tie rule "even", how many of its rows equal it; they become the joint maximum and
// the share that take_share expects. top and count: scratch rows.
template <class S, class Maximum, class Share>
inline void share_among_parts(int64_t parts, Maximum&& maximum, Share&& share, TieRule tie, S* gradient, S* top,
                              S* count, int64_t n) {
  fill_row(top, -kInf<S>, n);
  for (int64_t i = 0; i < parts; ++i) max_row<S>(top, maximum(i), n);
  if (tie == TieRule::even) {
    clear_row(count, n);
    for (int64_t i = 0; i < parts; ++i) {
      const S *m = maximum(i), *equal = share(i);
      for_lanes<S>(n, [&](int64_t c, auto w) {
        const vec<S> zero{};
        put(count + c, get(count + c, w) + (get(m + c, w) == get(top + c, w) ? get(equal + c, w) : zero), w);
      });
    }
    divide_row(gradient, count, n);
  }
  for (int64_t i = 0; i < parts; ++i) {
    take_share<S>(maximum(i), top, gradient, tie == TieRule::first, share(i), n);
    std::memcpy(maximum(i), top, n * sizeof(S));
  }
}

}  // namespace pool
ATTN_NAMESPACE_END
