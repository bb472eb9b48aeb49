// What the kernels of a flow attention call share: its arguments and its scratch memory. Tokens of a sequence are cut
// into chunks; per chunk and head there are the sums that later passes need of all chunks, or of those before.
#pragma once

#include "attn/flow.h"
#include "cuda/scan_chunks.h"
#include "cuda/scratch.h"

namespace attn::cuda {

constexpr int64_t kFlowChunk = 256;   // tokens
constexpr int kFlowTiles = 4;         // of tokens, in a chunk: as matrix products take them
constexpr int64_t kFlowMaxDim = 256;  // features of a row, which lie in the registers of a warp

// exp(x - top) summed over some tokens; sum 0: over none.
struct FlowMass {
  float top, sum;

  ATTN_HD static FlowMass none() { return {0, 0}; }
  ATTN_HD static FlowMass join(FlowMass a, FlowMass b) {
    if (a.sum == 0) return b;
    if (b.sum == 0) return a;
    const float top = std::fmax(a.top, b.top);
    return {top, a.sum * std::exp(a.top - top) + b.sum * std::exp(b.top - top)};
  }
  template <class F> ATTN_HD FlowMass map(F&& f) const { return {f(top), f(sum)}; }
};

struct FlowWork {
  FlowParams p;
  ScanChunks chunks;  // of sinks and sources alike
  // Kept tokens of every sequence, where there is a mask: index [B * T], count [sequences]. Causally one list.
  int32_t *q_index, *q_count, *k_index, *k_count;
  float* flows;       // [slots, H, 2, D]: source, sink
  float* normalised;  // [slots, H, 2, D]: source / outgoing, sink / incoming (causal: times t)
  FlowMass* mass;     // [slots, H]; over tokens: then of the chunks before
  FlowMass* total;    // [sequences, H], over tokens: of all
  float* product;     // [slots, H, D, Dv]: source (x) weight v
};

inline FlowWork flow_work(const FlowParams& p, ScratchPieces& scratch) {
  FlowWork w{};
  w.p = p;
  w.chunks = {p.cu, p.sequences, p.tq > p.tk ? p.tq : p.tk, kFlowChunk};
  const auto list = [&](const MaskView& mask, int64_t tokens, int32_t*& index, int32_t*& count) {
    if (!mask.data) return;
    index = scratch.take<int32_t>(p.batch * tokens);
    count = scratch.take<int32_t>(p.sequences);
  };
  list(p.query_mask, p.tq, w.q_index, w.q_count);
  if (p.causal) {
    w.k_index = w.q_index;
    w.k_count = w.q_count;
  } else {
    list(p.key_mask, p.tk, w.k_index, w.k_count);
  }
  const int64_t places = w.chunks.slots() * p.heads;
  w.flows = scratch.take(places * 2 * p.dim);
  w.normalised = scratch.take(places * 2 * p.dim);
  w.mass = scratch.take<FlowMass>(places);
  w.total = scratch.take<FlowMass>(p.sequences * p.heads);
  w.product = scratch.take(places * p.dim * p.dim_v);
  return w;
}

inline int64_t flow_scratch(const FlowParams& p) {
  ScratchPieces counted;
  flow_work(p, counted);
  return counted.used();
}

}  // namespace attn::cuda
