// The gradient of a maximum of three neighbours, as a window that slides: each row and each gradient is loaded once.
#pragma once

#include "cuda/window_rows.h"

namespace attn::cuda {

// Rows t - 1 and t of the window around t and what they have got from the windows before it. The winner is that of
// window_max_gradient, and so is the order of additions.
template <int V> struct SlidingMaxGradient {
  float before[V], here[V], to_before[V], to_here[V];
  bool there_before, there_here;

  template <class T> ATTN_DEVICE void start(const WindowRows<T>& rows, int64_t at) {
    there_before = load(rows, at - 1, before);
    there_here = load(rows, at, here);
    set_channels(to_before, 0);
    set_channels(to_here, 0);
  }
  template <class T> ATTN_DEVICE static bool load(const WindowRows<T>& rows, int64_t at, float (&x)[V]) {
    const T* row = rows.row(at);
    set_channels(x, 0);
    if (row) load_channels(row, x);
    return row != nullptr;
  }

  // Row t + 1 comes in; dy: gradient of window t, zeros where row t takes no part. done: that of row t - 1, whole now.
  template <class T>
  ATTN_DEVICE void next(bool there, const Pack<T, V>& row, const Pack<T, V>& dy, float (&done)[V]) {
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      const float x = seam::to_float(row.x[i]), g = seam::to_float(dy.x[i]);
      const bool second = !there_before || wins(here[i], before[i]);
      const bool third = there && wins(x, second ? here[i] : before[i]);
      done[i] = to_before[i] + (second || third ? 0 : g);
      to_before[i] = to_here[i] + (second && !third ? g : 0);
      to_here[i] = third ? g : 0;
      before[i] = here[i];
      here[i] = x;
    }
    there_before = there_here;
    there_here = there;
  }
  ATTN_DEVICE static bool wins(float later, float earlier) { return later > earlier || later != later; }

  // Calls f(position, its gradient) for [begin, end).
  template <class T, class F>
  ATTN_DEVICE static void walk(const WindowRows<T>& rows, const T* dy, int64_t dy_stride, int32_t begin, int32_t end,
                               F&& f) {
    constexpr int kAtOnce = 4;
    SlidingMaxGradient window;
    window.start(rows, begin - 1);
    ATTN_ROLLED
    for (int32_t t = begin - 1; t <= end; t += kAtOnce) {  // windows
      Pack<T, V> x[kAtOnce] = {}, g[kAtOnce] = {};
      bool there[kAtOnce];
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        const T* row = t + i <= end ? rows.row(t + i + 1) : nullptr;
        there[i] = row != nullptr;
        if (row) x[i] = load_vector<T, V>(row);
        if (t + i <= end && rows.row(t + i)) g[i] = load_vector<T, V>(dy + (t + i) * dy_stride);
      }
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (t + i > end) break;
        float done[V];
        window.next(there[i], x[i], g[i], done);
        if (t + i > begin) f(t + i - 1, done);
      }
    }
  }
};

// Calls f(position, gradient of its row) for [begin, end).
template <int V, class T, class F>
ATTN_DEVICE void window_max_gradients(const WindowRows<T>& rows, const T* dy, int64_t dy_stride, int32_t begin,
                                      int32_t end, F&& f) {
  if (rows.half == 1 && rows.dilation == 1) {
    SlidingMaxGradient<V>::walk(rows, dy, dy_stride, begin, end, f);
    return;
  }
  ATTN_ROLLED
  for (int32_t t = begin; t < end; ++t) {
    float g[V];
    window_max_gradient(rows, dy, dy_stride, t, g);
    f(t, g);
  }
}

}  // namespace attn::cuda
