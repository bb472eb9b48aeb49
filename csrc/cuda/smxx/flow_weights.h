// Weights of flow attention's sources: the softmax of their conserved flows times their number. It runs over all
// sources, causally over those up to the token itself, or over the heads at each source. For every architecture.
#pragma once

#include "cuda/smxx/flow_sums.h"

namespace attn::cuda {

// A block takes a chunk, a thread a token. The mass of other chunks is added up by each block anew: there is one number
// for 256 tokens.
struct FlowWeights {
  static constexpr int kThreads = kFlowChunk;
  static constexpr int kWarps = kThreads / 32;
  using Params = FlowWork;
  struct Shared { FlowMass chunks[kWarps], tokens[kWarps]; };
  static Grid grid(const FlowWork& w) { return flow_grid(w); }

  ATTN_DEVICE static FlowMass shuffle(FlowMass m, int lane) {
    return {seam::shuffle(m.top, lane), seam::shuffle(m.sum, lane)};
  }

  // Mass of the first n chunks of the sequence, in every thread.
  ATTN_DEVICE static FlowMass of_chunks(const FlowWork& w, const FlowChunk& c, int64_t n, Shared& shared) {
    const int64_t first = c.slot - c.chunk;
    FlowMass mass{0, 0};
    for (int64_t i = seam::thread(); i < n; i += kThreads)
      mass = merge_mass(mass, w.mass[(first + i) * w.p.heads + c.head]);
    for (int step = 16; step > 0; step /= 2) mass = merge_mass(mass, shuffle(mass, seam::lane() ^ step));
    if (seam::lane() == 0) shared.chunks[seam::warp()] = mass;
    seam::sync_block();
    mass = {0, 0};
    for (int i = 0; i < kWarps; ++i) mass = merge_mass(mass, shared.chunks[i]);
    return mass;
  }

  ATTN_DEVICE static void run(const FlowWork& w, Shared& shared) {
    FlowChunk c;
    if (!c.open(w, seam::block_x())) return;
    const FlowParams& p = w.p;
    const bool causal = p.causal;
    const FlowMass others = of_chunks(w, c, causal ? c.chunk : w.chunks.chunks(c.sequence), shared);
    const int64_t t = c.begin + seam::thread();
    const bool there = t < c.sources.count;
    const float flow = there ? cut_flow(c.source_stat(w, 1)[t], static_cast<float>(p.clamp)) : 0;
    FlowMass mass = others;
    if (causal) {
      mass = {flow, there ? 1.f : 0.f};
      for (int step = 1; step < 32; step *= 2) {
        const FlowMass before = shuffle(mass, seam::lane() < step ? seam::lane() : seam::lane() - step);
        if (seam::lane() >= step) mass = merge_mass(before, mass);
      }
      if (seam::lane() == 31) shared.tokens[seam::warp()] = mass;
      seam::sync_block();
      FlowMass before = others;
      for (int i = 0; i < seam::warp(); ++i) before = merge_mass(before, shared.tokens[i]);
      mass = merge_mass(before, mass);
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
    for (int64_t h = 0; h < w.p.heads; ++h) mass = merge_mass(mass, {flow(h), 1});
    for (int64_t h = 0; h < w.p.heads; ++h) {
      const float share = std::exp(flow(h) - mass.top) / mass.sum;
      c.source_stat(w, 2)[t] = share * static_cast<float>(c.sources.count);
    }
  }
};

}  // namespace attn::cuda
