// x[b, c, t] (channel[b, c] + time[b, t]): one pass over x. The gradient of the time gate sums over channels: each work
// item sums its rows, the items' sums are added in order.
#pragma once

#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

// Rows (channels) of one batch entry that a work item takes, about as many elements as a chunk.
ATTN_INLINE int64_t gate_rows(int64_t time) { return chunk_tokens(time); }

template <class T> inline void gate_forward(const AxisGateParams& p) {
  using S = Sum<T>;
  const int64_t rows = gate_rows(p.time), strips = (p.channels + rows - 1) / rows;
  parallel_runs(p.batch * strips, [&](int64_t item, int) {
    const int64_t batch = item / strips, first = item % strips * rows;
    const T* time = static_cast<const T*>(p.time_gate) + batch * p.time;
    for (int64_t c = first; c < p.channels && c < first + rows; ++c) {
      const S gate = to_float(static_cast<const T*>(p.channel_gate)[batch * p.channels + c]);
      const T* x = token_row<const T>(p.x, batch, c);
      T* out = static_cast<T*>(p.out) + (batch * p.channels + c) * p.time;
      for_lanes<S>(p.time, [&](int64_t i, auto w) { put(out + i, get(x + i, w) * (get(time + i, w) + gate), w); });
    }
  });
}

template <class T> inline void gate_backward(const AxisGateBackwardParams& b) {
  using S = Sum<T>;
  const AxisGateParams& p = b.forward;
  const int64_t rows = gate_rows(p.time), strips = (p.channels + rows - 1) / rows;
  const Buffer<S> partial(p.batch * strips * p.time);
  parallel_runs(p.batch * strips, [&](int64_t item, int) {
    const int64_t batch = item / strips, first = item % strips * rows;
    const T* time = static_cast<const T*>(p.time_gate) + batch * p.time;
    S* dtime = partial + item * p.time;
    clear_row(dtime, p.time);
    for (int64_t c = first; c < p.channels && c < first + rows; ++c) {
      const int64_t row = batch * p.channels + c;
      const S gate = to_float(static_cast<const T*>(p.channel_gate)[row]);
      const T *x = token_row<const T>(p.x, batch, c), *dy = token_row<const T>(b.dout, batch, c);
      T* dx = b.dx ? static_cast<T*>(b.dx) + row * p.time : nullptr;
      vec<S> dchannel{};
      for_lanes<S>(p.time, [&](int64_t i, auto w) {
        const vec<S> g = get(dy + i, w), t = get(x + i, w) * g;
        if (dx) put(dx + i, g * (get(time + i, w) + gate), w);
        put(dtime + i, get(dtime + i, w) + t, w);
        dchannel += t;
      });
      if (b.dchannel) static_cast<T*>(b.dchannel)[row] = From<T>::of(sum_lanes<S>(dchannel));
    }
  });
  if (!b.dtime) return;
  for (int64_t batch = 0; batch < p.batch; ++batch) {
    T* out = static_cast<T*>(b.dtime) + batch * p.time;
    if (strips == 0) clear_row(out, p.time);
    if (strips == 0) continue;
    S* sum = partial + batch * strips * p.time;
    for (int64_t i = 1; i < strips; ++i) add_row<S>(sum, partial + (batch * strips + i) * p.time, p.time);
    scale_row<T>(out, S{1}, sum, p.time);
  }
}

}  // namespace pool

inline void axis_gate_forward(const AxisGateParams& p) { ATTN_POOL_DISPATCH(p.dtype, pool::gate_forward, p) }
inline void axis_gate_backward(const AxisGateBackwardParams& p){
    ATTN_POOL_DISPATCH(p.forward.dtype, pool::gate_backward, p)}

ATTN_NAMESPACE_END
