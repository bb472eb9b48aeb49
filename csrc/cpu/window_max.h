// Maximum over a sliding window of rows and its gradient, shared by window pooling and PoNet. Among equal values the
// first one is the maximum (max_pool1d's rule).
#pragma once

#include <type_traits>

#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

// The rows of one sequence that may be the maximum of a window.
template <class T> struct WindowRows {
  const T* base;  // position 0
  int64_t stride, length, window, dilation;
  int64_t batch, first;     // of position 0, for the masks
  MaskView mask, excluded;  // a row takes part if `mask` keeps it and `excluded` (may be absent) doesn't name it

  const T* row(int64_t at) const { return base + at * stride; }

  bool takes_part(int64_t at) const {
    return taken(mask, batch, first + at) && (!excluded.data || !taken(excluded, batch, first + at));
  }

  // How far a window reaches to either side, and how many rows it holds at most.
  int64_t reach() const {
    const int64_t half = window / 2;
    return half < length / dilation + 1 ? half * dilation : length;
  }
  int64_t taps_at_most() const { return window < length ? window : length; }

  bool every_row() const { return !mask.data && !excluded.data; }

  // Rows in the window around `at`, ascending, into taps [taps_at_most()].
  int taps(int64_t at, const T** taps) const {
    const WindowBounds b = window_bounds(window, dilation, at, length);
    int n = 0;
    for (int64_t i = b.first; i <= b.last; i += dilation) {
      if (takes_part(i)) taps[n++] = row(i);
    }
    return n;
  }
};

// The rows of one window; N > 0: their number is known, and the row pointers stay in registers.
template <class T, int N> struct Taps {
  const T* row[N];

  Taps(const T* const* rows, int) {
    for (int k = 0; k < N; ++k) row[k] = rows[k];
  }

  template <class W> ATTN_INLINE vec<Sum<T>> max(int64_t i, W w) const {
    if constexpr (N == 1) return get(row[0] + i, w);
    else if constexpr (N == 2) return max_or_nan(get(row[0] + i, w), get(row[1] + i, w));
    else return max_or_nan(get(row[0] + i, w), get(row[1] + i, w), get(row[2] + i, w));
  }

  template <class W> ATTN_INLINE vec<Sum<T>> sum(int64_t i, W w) const {
    vec<Sum<T>> s = get(row[0] + i, w);
    ATTN_UNROLL
    for (int k = 1; k < N; ++k) s += get(row[k] + i, w);
    return s;
  }
};

template <class T> struct Taps<T, 0> {
  const T* const* row;
  int n;

  Taps(const T* const* rows, int count) : row(rows), n(count) {}

  template <class W> ATTN_INLINE vec<Sum<T>> max(int64_t i, W w) const {
    vec<Sum<T>> m = get(row[0] + i, w);
    for (int k = 1; k < n; ++k) m = max_or_nan(m, get(row[k] + i, w));
    return m;
  }

  template <class W> ATTN_INLINE vec<Sum<T>> sum(int64_t i, W w) const {
    vec<Sum<T>> s = get(row[0] + i, w);
    for (int k = 1; k < n; ++k) s += get(row[k] + i, w);
    return s;
  }
};

// Calls f(taps of a window of n rows, n > 0).
template <class T, class F> ATTN_INLINE void with_taps(const T* const* rows, int n, F&& f) {
  switch (n) {
    case 1: return f(Taps<T, 1>(rows, n));
    case 2: return f(Taps<T, 2>(rows, n));
    case 3: return f(Taps<T, 3>(rows, n));
    default: return f(Taps<T, 0>(rows, n));
  }
}

// Gradient of the window maximum as a gather: dx[j] sums dy[l] over the windows l around j whose maximum is row j. So
// no two work items write the same row, and no order of additions depends on how the work was cut.
template <class T> class WindowMaxGrad {
  using S = Sum<T>;
  static constexpr int64_t kChannels = 64;  // channels at a time in the general case: winners stay in L1

 public:
  // dy: position 0 of the gradient of the maxima.
  WindowMaxGrad(const WindowRows<T>& x, const T* dy, int64_t dy_stride, int64_t channels)
      : x_(x), dy_(dy), dy_stride_(dy_stride), channels_(channels) {}

  // Scratch for at most `rows` rows of results.
  static int64_t winner_elements(const WindowRows<T>& x, int64_t rows) { return (rows + 2 * x.reach()) * kChannels; }

  // dx rows [begin, end) of the sequence, rows that take no part being 0; dx points at position 0. `taps`:
  // [x.taps_at_most()]. `writer` serves windows of three, whose rows are complete at once.
  void operator()(int64_t begin, int64_t end, T* dx, int64_t dx_stride, S* winners, const T** taps,
                  const RowWriter<T>& writer) const {
    const bool three = x_.window == 3 && x_.dilation == 1;
    for (int64_t j = begin; j < end;) {
      if (three && plain(j)) {
        T* out = dx + j * dx_stride;
        three_rows(j, writer.row(out));
        writer.done(out);
        ++j;
        continue;
      }
      const int64_t stop = three ? j + 1 : end;
      general(j, stop, dx, dx_stride, winners, taps);
      j = stop;
    }
  }

 private:
  const T* dy_row(int64_t at) const { return dy_ + at * dy_stride_; }

  // Do all the windows that row j is part of hold three rows?
  bool plain(int64_t j) const {
    if (j < 2 || j + 2 >= x_.length) return false;
    if (x_.every_row()) return true;
    for (int64_t i = j - 2; i <= j + 2; ++i) {
      if (!x_.takes_part(i)) return false;
    }
    return true;
  }

  void three_rows(int64_t j, T* dx) const {
    const T *a = x_.row(j - 2), *b = x_.row(j - 1), *c = x_.row(j), *d = x_.row(j + 1), *e = x_.row(j + 2);
    const T *left = dy_row(j - 1), *mid = dy_row(j), *right = dy_row(j + 1);
    for_lanes<S>(channels_, [&](int64_t i, auto w) {
      const vec<S> x = get(c + i, w), zero{};
      const auto over_left = x > get(b + i, w), over_right = x >= get(d + i, w);
      const vec<S> g = ((over_left & (x > get(a + i, w))) ? get(left + i, w) : zero) +
                       ((over_left & over_right) ? get(mid + i, w) : zero) +
                       ((over_right & (x >= get(e + i, w))) ? get(right + i, w) : zero);
      put(dx + i, g, w);
    });
  }

  // The winner of every window that touches rows [begin, end), then the gather.
  void general(int64_t begin, int64_t end, T* dx, int64_t dx_stride, S* winners, const T** taps) const {
    const int64_t reach = x_.reach();
    const int64_t from = begin - reach > 0 ? begin - reach : 0, to = end + reach < x_.length ? end + reach : x_.length;
    for (int64_t c = 0; c < channels_; c += kChannels) {
      const int64_t n = channels_ - c < kChannels ? channels_ - c : kChannels;
      for (int64_t l = from; l < to; ++l) {
        if (x_.takes_part(l)) find_winners(l, c, n, winners + (l - from) * kChannels, taps);
      }
      for (int64_t j = begin; j < end; ++j) gather(j, from, c, n, winners, dx + j * dx_stride + c);
    }
  }

  // Number, among the rows of the window around l that take part, of the maximum.
  void find_winners(int64_t l, int64_t c, int64_t n, S* winner, const T** taps) const {
    const int count = x_.taps(l, taps);
    for_lanes<S>(n, [&](int64_t i, auto w) {
      vec<S> top = get(taps[0] + c + i, w), number{};
      for (int k = 1; k < count; ++k) {
        const vec<S> x = get(taps[k] + c + i, w);
        const auto better = (x > top) | (x != x);
        top = better ? x : top;
        number = better ? splat(static_cast<S>(k)) : number;
      }
      put(winner + i, number, w);
    });
  }

  // Number of row j among the rows of the window around l that take part.
  int64_t number_in(int64_t l, int64_t j) const {
    const int64_t first = window_bounds(x_.window, x_.dilation, l, x_.length).first;
    if (x_.every_row()) return (j - first) / x_.dilation;
    int64_t number = 0;
    for (int64_t i = first; i < j; i += x_.dilation) number += x_.takes_part(i);
    return number;
  }

  // The windows that row j is part of, a few at a time.
  void gather(int64_t j, int64_t from, int64_t c, int64_t n, const S* winners, T* dx) const {
    constexpr int kAtOnce = 8;
    S sum[kChannels] = {};
    const S* winner[kAtOnce];
    const T* dy[kAtOnce];
    S number[kAtOnce];
    int count = 0;
    const auto add = [&] {
      for_lanes<S>(n, [&](int64_t i, auto w) {
        vec<S> g = get(sum + i, w);
        const vec<S> zero{};
        for (int k = 0; k < count; ++k) g += get(winner[k] + i, w) == number[k] ? get(dy[k] + i, w) : zero;
        put(sum + i, g, w);
      });
      count = 0;
    };
    const WindowBounds b = window_bounds(x_.window, x_.dilation, j, x_.length);
    for (int64_t l = b.first; l <= b.last && x_.takes_part(j); l += x_.dilation) {
      if (!x_.takes_part(l)) continue;
      winner[count] = winners + (l - from) * kChannels;
      dy[count] = dy_row(l) + c;
      number[count] = static_cast<S>(number_in(l, j));
      if (++count == kAtOnce) add();
    }
    if (count > 0) add();
    scale_row<T>(dx, S{1}, sum, n);
  }

  WindowRows<T> x_;
  const T* dy_;
  int64_t dy_stride_, channels_;
};

}  // namespace pool
ATTN_NAMESPACE_END
