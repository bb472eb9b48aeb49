// Scratch memory of flow attention's backward pass. Notation and formulas: csrc/cpu/flow_backward.h and, causal,
// csrc/cpu/flow_causal_backward.h.
#pragma once

#include "cuda/flow_work.h"

namespace attn::cuda {

// Gradients of the forward's four sums, in the order in which passes write them, two at a time; the last is unused.
enum FlowGradSum { kDSourceFlows, kDSinkFlows, kDSinks, kDSources, kDSums = kDSources + 2 };

// A line x -> slope x + offset; join: first the one, then the other.
struct FlowLine {
  float slope, offset;

  ATTN_HD static FlowLine none() { return {1, 0}; }
  ATTN_HD static FlowLine join(FlowLine a, FlowLine b) { return {a.slope * b.slope, b.slope * a.offset + b.offset}; }
  template <class F> ATTN_HD FlowLine map(F&& f) const { return {f(slope), f(offset)}; }
};

// Summed over tokens.
struct FlowSum {
  float sum;

  ATTN_HD static FlowSum none() { return {0}; }
  ATTN_HD static FlowSum join(FlowSum a, FlowSum b) { return {a.sum + b.sum}; }
  template <class F> ATTN_HD FlowSum map(F&& f) const { return {f(sum)}; }
};

struct FlowGradWork {
  // p: the forward's arguments and results. flows and product hold what each chunk adds to the sum at hand, mass
  // nothing. Causal: flows and normalised as in the forward pass, product first the sums of sink (x) g after a chunk,
  // then as in the forward pass.
  FlowWork f;
  View4 dout, dq, dk, dv;
  float *dots, *scale, *dincoming;          // [B, H, Tq]: h; a / incoming
  float *dweight, *dconserved, *doutgoing;  // [B, H, Tk]
  // Null where causal.
  FlowSum* weighed;  // [slots, kFlowTiles, H]: weight dweight, summed over the tokens of a tile
  FlowSum* total;    // [sequences, kFlowTiles, H]: over the chunks
  float* dsums;      // [sequences, H, kDSums, D]
  float* dproduct;   // [sequences, H, D, Dv]
  // Null where not: what a chunk adds, then the sums over those after it.
  FlowLine* lines;           // [slots, H]: gamma
  float *conserved, *after;  // [slots, H, 2, D]: beta, alpha; theta, kappa
};

inline FlowGradWork flow_grad_work(const FlowBackwardParams& b, ScratchPieces& scratch) {
  FlowGradWork w{};
  w.f = flow_work(b.forward, scratch);
  w.dout = b.dout, w.dq = b.dq, w.dk = b.dk, w.dv = b.dv;
  const FlowParams& p = b.forward;
  for (float** x : {&w.dots, &w.scale, &w.dincoming}) *x = scratch.take(p.batch * p.heads * p.tq);
  for (float** x : {&w.dweight, &w.dconserved, &w.doutgoing}) *x = scratch.take(p.batch * p.heads * p.tk);
  const int64_t places = w.f.chunks.slots() * p.heads;
  if (p.causal) {
    w.lines = scratch.take<FlowLine>(places);
    w.conserved = scratch.take(places * 2 * p.dim);
    w.after = scratch.take(places * 2 * p.dim);
    return w;
  }
  w.weighed = scratch.take<FlowSum>(kFlowTiles * places);
  w.total = scratch.take<FlowSum>(kFlowTiles * p.sequences * p.heads);
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
