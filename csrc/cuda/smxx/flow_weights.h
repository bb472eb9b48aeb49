// Weights of flow attention's sources: the softmax of their conserved flows times their number. It runs over all
// sources, causally over those up to the token itself, or over the heads at each source. For every architecture.
#pragma once

#include "cuda/smxx/flow_sums.h"
#include "cuda/smxx/item_scan.h"

namespace attn::cuda {

// A block takes a chunk, a thread a token.
struct FlowWeights {
  static constexpr int kThreads = kFlowChunk;
  using Params = FlowWork;
  struct Shared { BlockScan<FlowMass, kThreads> scan; };
  static Grid grid(const FlowWork& w) { return flow_grid(w); }

  ATTN_DEVICE static void run(const FlowWork& w, Shared& shared) {
    FlowChunk c;
    if (!c.open(w, seam::block_x())) return;
    const FlowParams& p = w.p;
    const bool causal = p.causal;
    const int64_t t = c.begin + seam::thread();
    const bool there = t < c.sources.count;
    const float flow = there ? cut_flow(c.source_stat(w, 1)[t], static_cast<float>(p.clamp)) : 0;
    FlowMass mass;
    if (causal) {
      const FlowMass own{flow, there ? 1.f : 0.f};
      mass = FlowMass::join(FlowMass::join(w.mass[c.place(w)], shared.scan.of(own).before), own);
    } else {
      mass = w.total[c.group(w)];
    }
    const float count = static_cast<float>(causal ? t + 1 : c.sources.count);
    if (there) c.source_stat(w, 2)[t] = std::exp(flow - mass.top) / mass.sum * count;
    // What the state says beside sums; the caller has zeroed it for sequences without a chunk.
    if (!p.log_mean || c.chunk + 1 != w.chunks.chunks(c.sequence) || seam::thread() != kThreads - 1) return;
    const float n = static_cast<float>(c.sources.count);
    static_cast<float*>(p.log_mean)[c.group(w)] = n > 0 ? mass.top + std::log(mass.sum / n) : 0;
    if (c.head == 0) static_cast<float*>(p.tokens)[c.sequence] = n;
  }
};

// Competition over heads: a thread takes a token.
struct FlowHeadWeights {
  static constexpr int kThreads = kFlowChunk;
  using Params = FlowWork;
  struct Shared {};
  static Grid grid(const FlowWork& w) { return {w.chunks.slots()}; }

  ATTN_DEVICE static void run(const FlowWork& w, Shared&) {
    FlowChunk c;
    if (!c.open(w, seam::block_x())) return;
    const int64_t t = c.begin + seam::thread();
    if (t >= c.sources.count) return;
    FlowMass mass{0, 0};
    const auto flow = [&](int64_t head) {
      c.head = head;
      return cut_flow(c.source_stat(w, 1)[t], static_cast<float>(w.p.clamp));
    };
    for (int64_t h = 0; h < w.p.heads; ++h) mass = FlowMass::join(mass, {flow(h), 1});
    for (int64_t h = 0; h < w.p.heads; ++h) {
      const float share = std::exp(flow(h) - mass.top) / mass.sum;
      c.source_stat(w, 2)[t] = share * static_cast<float>(c.sources.count);
    }
  }
};

}  // namespace attn::cuda
