// Scratch memory of flow attention's backward pass, every sink facing every source. Notation and formulas:
// csrc/cpu/flow_backward.h.
#pragma once

#include "cuda/flow_work.h"

namespace attn::cuda {

// Gradients of the forward's four sums, in the order in which passes write them, two at a time; the last is unused.
enum FlowGradSum { kDSourceFlows, kDSinkFlows, kDSinks, kDSources, kDSums = kDSources + 2 };

struct FlowGradWork {
  // p: the forward's arguments and results. flows and product hold what each chunk adds to the sum at hand, mass
  // nothing.
  FlowWork f;
  View4 dout, dq, dk, dv;
  float *dots, *scale, *dincoming;          // [B, H, Tq]: h; a / incoming
  float *dweight, *dconserved, *doutgoing;  // [B, H, Tk]
  float* means;                             // [4 slots, H]: weight dweight, summed over 64 tokens
  float* dsums;                             // [sequences, H, kDSums, D]
  float* dproduct;                          // [sequences, H, D, Dv]
};

inline FlowGradWork flow_grad_work(const FlowBackwardParams& b, ScratchPieces& scratch) {
  FlowGradWork w{};
  w.f = flow_work(b.forward, scratch);
  w.dout = b.dout, w.dq = b.dq, w.dk = b.dk, w.dv = b.dv;
  const FlowParams& p = b.forward;
  for (float** x : {&w.dots, &w.scale, &w.dincoming}) *x = scratch.take(p.batch * p.heads * p.tq);
  for (float** x : {&w.dweight, &w.dconserved, &w.doutgoing}) *x = scratch.take(p.batch * p.heads * p.tk);
  w.means = scratch.take(4 * w.f.chunks.slots() * p.heads);
  w.dsums = scratch.take(p.sequences * p.heads * kDSums * p.dim);
  w.dproduct = scratch.take(p.sequences * p.heads * p.dim * p.dim_v);
  return w;
}

inline int64_t flow_backward_scratch(const FlowBackwardParams& b) {
  ScratchPieces counted;
  flow_grad_work(b, counted);
  return counted.used();
}

}  // namespace attn::cuda
