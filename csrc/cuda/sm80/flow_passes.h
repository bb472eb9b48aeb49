// Flow attention as a sequence of kernels on one stream: each pass needs sums over all chunks of the one before.
#pragma once

#include "cuda/sm80/flow_causal_grad_rows.h"
#include "cuda/sm80/flow_grad_product.h"
#include "cuda/sm80/flow_product.h"
#include "cuda/smxx/chunk_scan.h"
#include "cuda/smxx/flow_causal_grad.h"
#include "cuda/smxx/flow_step.h"
#include "cuda/smxx/flow_sums.h"
#include "cuda/smxx/flow_weights.h"

namespace attn::cuda {

// Sums of [size] a chunk: causally those before each chunk in its place, and the total at `total` (null: not wanted) +
// group * total_stride.
inline ChunkScanParams flow_scan(const FlowWork& w, float* slots, int64_t size, void* total, int64_t offset,
                                 int64_t total_stride) {
  float* to = total ? static_cast<float*>(total) + offset : nullptr;
  return {w.chunks, w.p.heads, size, slots, nullptr, to, total_stride, w.p.causal, false};
}

// Sums of [size] a chunk become those over the chunks after it.
inline ChunkScanParams flow_scan_back(const FlowWork& w, float* slots, int64_t size) {
  return {w.chunks, w.p.heads, size, slots, nullptr, nullptr, 0, true, true};
}

// run(kernel, params) launches a kernel, given an object of its type.
template <class T, class Run> void flow_forward_passes(const FlowWork& w, Run&& run) {
  const FlowParams& p = w.p;
  run(FlowKept(), w);
  run(FlowSums<T>(), w);
  run(ChunkScan(), flow_scan(w, w.flows, 2 * p.dim, p.sums, 0, 4 * p.dim));
  run(FlowDots<T, false>(), w);
  run(ChunkScan(), flow_scan(w, w.normalised, 2 * p.dim, p.sums, 2 * p.dim, 4 * p.dim));
  run(FlowDots<T, true>(), w);
  if (p.head_softmax) {
    run(FlowHeadWeights(), w);
  } else {
    run(ItemScan<FlowMass>(), ItemScanParams<FlowMass>{w.chunks, p.heads, w.mass, w.total, false});
    run(FlowWeights(), w);
  }
  run(FlowChunkProduct<T>(), w);
  run(ChunkScan(), flow_scan(w, w.product, p.dim * p.dim_v, p.product, 0, p.dim * p.dim_v));
  run(FlowOut<T>(), w);
}

// What later tokens pass back comes in the order in which each needs the one before: dv, then the gradients of weights,
// of conserved flows and of flows.
template <class T, class Run> void flow_causal_backward_passes(const FlowGradWork& g, Run&& run) {
  const FlowWork& w = g.f;
  const int64_t dim = w.p.dim, size = dim * w.p.dim_v;
  run(FlowKept(), w);
  run(FlowCausalSums<T>(), g);
  run(ChunkScan(), flow_scan(w, w.flows, 2 * dim, nullptr, 0, 0));
  run(ChunkScan(), flow_scan(w, w.normalised, 2 * dim, nullptr, 0, 0));
  run(FlowGradChunkProduct<T>(), g);
  run(ChunkScan(), flow_scan_back(w, w.product, size));
  run(FlowGradValues<T>(), g);
  run(FlowGammaLines(), g);
  run(ItemScan<FlowLine>(), ItemScanParams<FlowLine>{w.chunks, w.p.heads, g.lines, nullptr, true});
  run(FlowCausalWeights<T>(), g);
  run(ChunkScan(), flow_scan_back(w, g.conserved, 2 * dim));
  run(FlowCausalFlows<T>(), g);
  run(ChunkScan(), flow_scan_back(w, g.after, 2 * dim));
  run(FlowCausalGradRows<T, true>(), g);
  // The other product, in the same memory.
  run(FlowChunkProduct<T>(), w);
  run(ChunkScan(), flow_scan(w, w.product, size, nullptr, 0, 0));
  run(FlowCausalGradRows<T, false>(), g);
}

template <class T, class Run> void flow_backward_passes(const FlowGradWork& g, Run&& run) {
  if (g.f.p.causal) return flow_causal_backward_passes<T>(g, run);
  using Pass = FlowGradPass;
  const FlowWork& w = g.f;
  const int64_t dim = w.p.dim;
  // Adds up what the chunks left, two vectors each.
  const auto total = [&](int64_t which) {
    run(ChunkScan(), flow_scan(w, w.flows, 2 * dim, g.dsums, which * dim, kDSums * dim));
  };
  run(FlowKept(), w);
  run(FlowGradSums<T, Pass::sinks>(), g);
  total(kDSourceFlows);
  run(FlowGradChunkProduct<T>(), g);
  run(ChunkScan(), flow_scan(w, w.product, dim * w.p.dim_v, g.dproduct, 0, dim * w.p.dim_v));
  run(FlowGradValues<T>(), g);
  if (!w.p.head_softmax) {
    run(ItemScan<FlowSum>(), ItemScanParams<FlowSum>{w.chunks, kFlowTiles * w.p.heads, g.weighed, g.total, false});
  }
  run(FlowGradWeights(), g);
  run(FlowGradSums<T, Pass::sources>(), g);
  total(kDSinkFlows);
  run(FlowGradSums<T, Pass::incoming>(), g);
  total(kDSources);
  run(FlowGradRows<T, false>(), g);
  run(FlowGradRows<T, true>(), g);
}

}  // namespace attn::cuda
