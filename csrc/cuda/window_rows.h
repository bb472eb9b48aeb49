// The rows of one sequence that may be in a window, at a thread's channels; shared by window pooling and PoNet. Among
// equal values the first one is the maximum (max_pool1d's rule), a NaN is greater than all.
#pragma once

#include "cuda/vectors.h"

namespace attn::cuda {

template <class T> struct WindowRows {
  const T* base;  // position 0
  int64_t stride;
  int32_t length, half, dilation;
  int64_t batch, first;     // of position 0, for the masks
  MaskView mask, excluded;  // a row takes part if `mask` keeps it and `excluded` (may be absent) doesn't name it

  ATTN_DEVICE bool takes_part(int64_t at) const {
    return taken(mask, batch, first + at) && (!excluded.data || !taken(excluded, batch, first + at));
  }
  ATTN_DEVICE const T* at(int64_t position) const { return base + position * stride; }
  // Null where it takes no part or there is none.
  ATTN_DEVICE const T* row(int64_t position) const {
    return position >= 0 && position < length && takes_part(position) ? at(position) : nullptr;
  }
  ATTN_DEVICE WindowBounds bounds(int64_t at) const {
    return window_bounds(2 * int64_t{half} + 1, dilation, at, length);
  }
  // Calls f(pack) for the rows of the window around `at`, in order.
  template <int V, class F> ATTN_DEVICE void for_window(int64_t at, F&& f) const {
    const WindowBounds b = bounds(at);
    const int32_t n = static_cast<int32_t>(dilation == 1 ? b.last - b.first : (b.last - b.first) / dilation) + 1;
    for_rows<V, T>(
        0, n, [&](int32_t i) { return row(b.first + int64_t{i} * dilation); },
        [&](int32_t, const Pack<T, V>& x) { f(x); });
  }
};

// half: rows to either side. Cut to the sequence, so that counting them doesn't overflow.
ATTN_DEVICE int32_t window_half(int64_t window, int64_t length) {
  const int64_t half = window / 2;
  return static_cast<int32_t>(half < length ? half : length);
}

// Maximum of three neighbours, as a window that slides: each row is loaded once.
template <int V> struct SlidingMax {
  float before[V], here[V];

  template <class T> ATTN_DEVICE void start(const WindowRows<T>& rows, int64_t at) {
    set_channels(before, -INFINITY);
    set_channels(here, -INFINITY);
    if (const T* row = rows.row(at - 1)) load_channels(row, before);
    if (const T* row = rows.row(at)) load_channels(row, here);
  }
  // The next row comes in; top: maximum of it and the two before.
  template <class T> ATTN_DEVICE void next(bool there, const Pack<T, V>& row, float (&top)[V]) {
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      const float x = there ? seam::to_float(row.x[i]) : -INFINITY;
      top[i] = max_or_nan(max_or_nan(before[i], here[i]), x);
      before[i] = here[i];
      here[i] = x;
    }
  }

  // Calls f(position, its window's maximum) for [begin, end), where it was started; several rows are in flight.
  template <class T, class F>
  ATTN_DEVICE void walk(const WindowRows<T>& rows, int32_t begin, int32_t end, F&& f) {
    constexpr int kAtOnce = 4;
    ATTN_ROLLED
    for (int32_t t = begin; t < end; t += kAtOnce) {
      Pack<T, V> x[kAtOnce] = {};
      bool there[kAtOnce];
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        const T* p = t + i < end ? rows.row(t + i + 1) : nullptr;
        there[i] = p != nullptr;
        if (p) x[i] = load_vector<T, V>(p);
      }
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (t + i >= end) break;
        float top[V];
        next(there[i], x[i], top);
        f(t + i, top);
      }
    }
  }
};

// Gradient of a row from the windows whose maximum it is. Row j is the maximum of the windows between the last row
// before it that is as great and the first after it that is greater: the order of additions is that of the windows.
template <int V, class T>
ATTN_DEVICE void window_max_gradient(const WindowRows<T>& x, const T* dy, int64_t dy_stride, int64_t j,
                                     float (&sum)[V]) {
  set_channels(sum, 0);
  if (!x.takes_part(j)) return;
  float own[V];
  load_channels(x.at(j), own);
  int32_t from[V], to[V];  // windows, counted from j in steps of the dilation
  ATTN_UNROLL
  for (int i = 0; i < V; ++i) from[i] = -x.half, to[i] = x.half;
  bool open = true;
  int64_t at = j - x.dilation;
  for (int32_t k = 1; open && k <= 2 * int64_t{x.half} && at >= 0; ++k, at -= x.dilation) {
    if (!x.takes_part(at)) continue;
    float other[V];
    load_channels(x.at(at), other);
    open = false;
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      if (from[i] == -x.half && own[i] == own[i] && !(other[i] < own[i])) from[i] = x.half - k + 1;
      open = open || from[i] == -x.half;
    }
  }
  open = true;
  at = j + x.dilation;
  for (int32_t k = 1; open && k <= 2 * int64_t{x.half} && at < x.length; ++k, at += x.dilation) {
    if (!x.takes_part(at)) continue;
    float other[V];
    load_channels(x.at(at), other);
    open = false;
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      if (to[i] == x.half && (other[i] > own[i] || other[i] != other[i])) to[i] = k - x.half - 1;
      open = open || to[i] == x.half;
    }
  }
  const WindowBounds b = x.bounds(j);
  int32_t k = static_cast<int32_t>(x.dilation == 1 ? b.first - j : (b.first - j) / x.dilation);
  for (int64_t l = b.first; l <= b.last; l += x.dilation, ++k) {
    bool any = false;
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) any = any || (from[i] <= k && k <= to[i]);
    if (!any || !x.takes_part(l)) continue;
    float g[V];
    load_channels(dy + l * dy_stride, g);
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) sum[i] += from[i] <= k && k <= to[i] ? g[i] : 0;
  }
}

}  // namespace attn::cuda
