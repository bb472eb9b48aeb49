// What the backward pass of attention needs of each row before it starts,
//   delta = <dout, out> - dlse   (0 for a row that sees no key),
// so that dS_ij = P_ij (gate_i <dout_i, v_j> - delta_i) also holds for branches that are merged later and for a
// gradient of the lse; and the gradient of the sinks, which follows from it. For every architecture; memory-bound.
#pragma once

#include "attn/softmax.h"
#include "cuda/backward_params.h"
#include "cuda/grid.h"
#include "cuda/seam.h"

namespace attn::cuda {

// A warp takes a row of [B, H, Tq].
template <class T> struct AttendDelta {
  static constexpr int kThreads = 128;
  using Params = BackwardParams;
  struct Shared {};

  static Grid grid(const Params& b) {
    const AttendParams& p = b.forward;
    return {(p.batch * p.heads * p.tq + kThreads / 32 - 1) / (kThreads / 32)};
  }

  ATTN_DEVICE static void run(const Params& b, Shared&) {
    const AttendParams& p = b.forward;
    const int64_t row = static_cast<int64_t>(seam::block_x()) * (kThreads / 32) + seam::warp();
    if (row >= p.batch * p.heads * p.tq) return;
    float sum = 0;
    if (static_cast<const float*>(p.lse)[row] != -INFINITY) {  // of an empty row nothing is read
      const int64_t batch = row / p.tq / p.heads, head = row / p.tq % p.heads, token = row % p.tq;
      auto at = [&](const View4& x) {
        return static_cast<const T*>(x.data) + batch * x.batch + head * x.head + token * x.token;
      };
      const T *out = at(p.out), *dout = at(b.dout);
      ATTN_UNROLL
      for (int i = 0; i < 4; ++i) {  // loads in flight
        const int64_t d = seam::lane() + 32 * i;
        if (d < p.dim_v) sum += seam::to_float(out[d]) * seam::to_float(dout[d]);
      }
      for (int64_t d = seam::lane() + 128; d < p.dim_v; d += 32)
        sum += seam::to_float(out[d]) * seam::to_float(dout[d]);
      for (int step = 16; step > 0; step /= 2) sum += seam::shuffle_xor(sum, step);
      if (b.dlse) sum -= static_cast<const float*>(b.dlse)[row];
    }
    if (seam::lane() == 0) b.delta[row] = sum;
  }
};

// A block takes a head: the sink's weight 2^(sink - lse) times the gradient 0 - delta of its logit, summed over rows. A
// is the type of lse and delta.
template <class A> struct SinkGradients {
  static constexpr int kThreads = 256;
  using Params = BackwardParams;
  struct Shared { double sum[kThreads]; };

  static Grid grid(const Params& b) { return {b.dsink_logits ? b.forward.heads : 0}; }

  ATTN_DEVICE static void run(const Params& b, Shared& shared) {
    const AttendParams& p = b.forward;
    const int64_t head = seam::block_x();
    double sum = 0;
    for (int64_t i = seam::thread(); i < p.batch * p.tq; i += kThreads) {
      const int64_t row = (i / p.tq * p.heads + head) * p.tq + i % p.tq;
      const A delta = b.delta[row];
      if (delta == 0) continue;  // empty, or skipped by its gate: then its lse isn't known
      const A lse = static_cast<const A*>(p.lse)[row];
      sum -= static_cast<double>(seam::exp2_fast((p.sink_logits[head] - lse) * static_cast<A>(kLog2e))) * delta;
    }
    shared.sum[seam::thread()] = sum;
    seam::sync_block();
    if (seam::warp() != 0) return;
    sum = 0;
    for (int i = seam::lane(); i < kThreads; i += 32) sum += shared.sum[i];
    for (int step = 16; step > 0; step /= 2) sum += seam::shuffle_xor(sum, step);
    if (seam::lane() == 0) b.dsink_logits[head] = static_cast<float>(sum);
  }
};

}  // namespace attn::cuda
