// Window pooling: maximum or mean over a sliding window of tokens (attn/pool.h). Each row is read from memory once, its
// neighbours' windows find it in the cache.
#pragma once

#include "cpu/window_max.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

template <class T> inline WindowRows<T> window_rows(const WindowPoolParams& p, const SequenceSpan& s) {
  return {token_row<const T>(p.x, s.batch, s.first),
          p.x.token,
          s.length,
          p.window,
          p.dilation,
          s.batch,
          s.first,
          p.mask,
          MaskView{nullptr, 0, 0}};
}

template <class T> ATTN_INLINE T* result_row(const WindowPoolParams& p, void* data, const SequenceSpan& s, int64_t at) {
  return static_cast<T*>(data) + (s.batch * p.sequences.tokens + s.first + at) * p.channels;
}

template <class T> inline bool streams(const WindowPoolParams& p) {
  return p.sequences.batch * p.sequences.tokens * p.channels * int64_t{sizeof(T)} >= kStreamBytes;
}

// 1 / the number of tokens a mean divides by.
template <class S> ATTN_INLINE S mean_factor(const WindowPoolParams& p, int count) {
  return S{1} / static_cast<S>(p.count_include_pad ? p.window : count);
}

template <class T> struct WindowScratch {
  T* row;
  const T** taps;
  Sum<T>* sums;

  // sums: elements of it.
  WindowScratch(Carve& c, const WindowRows<T>& x, int64_t row_elements, int64_t sum_elements)
      : row(c.take<T>(row_elements)), taps(c.take<const T*>(x.taps_at_most())), sums(c.take<Sum<T>>(sum_elements)) {}
};

template <class T> inline void window_forward(const WindowPoolParams& p) {
  using S = Sum<T>;
  const Chunks chunks(p.sequences, chunk_tokens(p.channels));
  const bool stream = streams<T>(p);
  parallel_runs(chunks.count(), [&](int64_t item, int) {
    const Chunk chunk = chunks.at(item);
    const WindowRows<T> x = window_rows<T>(p, chunk.span);
    const auto scratch = carve<WindowScratch<T>>(x, p.channels, int64_t{0});
    const RowWriter<T> writer(stream, scratch.row, p.channels);
    const T** taps = scratch.taps;
    for (int64_t l = chunk.begin; l < chunk.end; ++l) {
      T* out = result_row<T>(p, p.out, chunk.span, l);
      T* row = writer.row(out);
      if (!x.takes_part(l)) {
        clear_row(row, p.channels);
      } else {
        const int n = x.taps(l, taps);
        with_taps<T>(taps, n, [&](const auto t) {
          const S factor = mean_factor<S>(p, n);
          if (p.mean) for_lanes<S>(p.channels, [&](int64_t i, auto w) { put(row + i, t.sum(i, w) * factor, w); });
          else for_lanes<S>(p.channels, [&](int64_t i, auto w) { put(row + i, t.max(i, w), w); });
        });
      }
      writer.done(out);
    }
  });
  clear_tail<T>(p.sequences, p.channels, p.out);
}

// dx[j] = sum over the windows l around j of dy[l] / count(l)
template <class T>
inline void mean_gradient(const WindowPoolParams& p, const WindowRows<T>& x, const T* dy, int64_t dy_stride, int64_t j,
                          const T** taps, T* dx, Sum<T>* sum) {
  using S = Sum<T>;
  clear_row(sum, p.channels);
  if (x.takes_part(j)) {
    const WindowBounds b = window_bounds(p.window, p.dilation, j, x.length);
    for (int64_t l = b.first; l <= b.last; l += p.dilation) {
      if (!x.takes_part(l)) continue;
      const S factor = mean_factor<S>(p, x.taps(l, taps));
      const T* g = dy + l * dy_stride;
      for_lanes<S>(p.channels, [&](int64_t i, auto w) { put(sum + i, get(sum + i, w) + get(g + i, w) * factor, w); });
    }
  }
  scale_row<T>(dx, S{1}, sum, p.channels);
}

template <class T> inline void window_backward(const WindowPoolBackwardParams& b) {
  const WindowPoolParams& p = b.forward;
  const Chunks chunks(p.sequences, chunk_tokens(p.channels));
  const bool stream = streams<T>(p);
  parallel_runs(chunks.count(), [&](int64_t item, int) {
    const Chunk chunk = chunks.at(item);
    const WindowRows<T> x = window_rows<T>(p, chunk.span);
    const T* dy = token_row<const T>(b.dout, chunk.span.batch, chunk.span.first);
    T* dx = result_row<T>(p, b.dx, chunk.span, 0);
    const int64_t sums = p.mean ? p.channels : WindowMaxGrad<T>::winner_elements(x, chunks.tokens());
    const auto scratch = carve<WindowScratch<T>>(x, p.channels, sums);
    const RowWriter<T> writer(stream, scratch.row, p.channels);
    if (p.mean) {
      for (int64_t j = chunk.begin; j < chunk.end; ++j) {
        T* out = dx + j * p.channels;
        mean_gradient<T>(p, x, dy, b.dout.token, j, scratch.taps, writer.row(out), scratch.sums);
        writer.done(out);
      }
    } else {
      const WindowMaxGrad<T> gradient(x, dy, b.dout.token, p.channels);
      gradient(chunk.begin, chunk.end, dx, p.channels, scratch.sums, scratch.taps, writer);
    }
  });
  clear_tail<T>(p.sequences, p.channels, b.dx);
}

}  // namespace pool

inline void window_pool_forward(const WindowPoolParams& p) { ATTN_POOL_DISPATCH(p.dtype, pool::window_forward, p) }
inline void window_pool_backward(const WindowPoolBackwardParams& p){
    ATTN_POOL_DISPATCH(p.forward.dtype, pool::window_backward, p)}

ATTN_NAMESPACE_END
