// Backward of flow attention, the passes over rows: gradients of the scalars of every sink and source, and of the sums
// that they were dots with. Blocks and warps as in flow_sums.h.
#pragma once

#include "cuda/flow_grad_work.h"
#include "cuda/smxx/flow_sums.h"

namespace attn::cuda {

// A chunk with both sinks and sources in its sequence; without, all gradients are 0 and nobody asks.
struct FlowGradChunk : FlowChunk {
  ATTN_DEVICE bool open(const FlowGradWork& w, int64_t at_slot) {
    return FlowChunk::open(w.f, at_slot) && sinks.count > 0 && sources.count > 0;
  }
  // Of a number by token, [B, H, T].
  ATTN_DEVICE float* by_sink(const FlowGradWork& w, float* x) const {
    return x + (sinks.batch * w.f.p.heads + head) * w.f.p.tq + sinks.first;
  }
  ATTN_DEVICE float* by_source(const FlowGradWork& w, float* x) const {
    return x + (sources.batch * w.f.p.heads + head) * w.f.p.tk + sources.first;
  }
  // Sum `which` of the forward, and gradients of them.
  ATTN_DEVICE const float* sum(const FlowGradWork& w, int which) const {
    return static_cast<const float*>(w.f.p.sums) + (group(w.f) * 4 + which) * w.f.p.dim;
  }
  ATTN_DEVICE const float* dsum(const FlowGradWork& w, FlowGradSum which) const {
    return w.dsums + (group(w.f) * kDSums + which) * w.f.p.dim;
  }
  // d conserved_i = h_i (1 - a_i) n / m
  ATTN_DEVICE float sink_gradient(const FlowGradWork& w, int64_t i) const {
    const float ratio = flow_ratio(*this), a = flow_sigmoid(sink_stat(w.f, 1)[i] * ratio);
    return by_sink(w, w.dots)[i] * (1 - a) * ratio;
  }
  // The same before h_i = out_i . dout_i is there; the calling warp leaves it and a_i / incoming_i to later passes.
  template <class T> ATTN_DEVICE float first_sink_gradient(const FlowGradWork& w, int64_t i) const {
    const T* out = flow_row<const T>(w.f.p.out, sinks, head, i);
    const T* dout = flow_row<const T>(w.dout, sinks, head, i);
    float h = 0;
    for_lane(w.f.p.dim_v, [&](int, int d) { h += seam::to_float(out[d]) * seam::to_float(dout[d]); });
    h = lane_sum(h);
    const float ratio = flow_ratio(*this), a = flow_sigmoid(sink_stat(w.f, 1)[i] * ratio);
    if (seam::lane() == 0) {
      by_sink(w, w.dots)[i] = h;
      by_sink(w, w.scale)[i] = a / sink_stat(w.f, 0)[i];
    }
    return h * (1 - a) * ratio;
  }
};

enum class FlowGradPass {
  sinks,     // h, a / incoming; added: d source_flows
  sources,   // d outgoing; added: d sink_flows, d sinks
  incoming,  // d incoming; added: d sources
};

template <class T, FlowGradPass kPass> struct FlowGradSums {
  static constexpr int kThreads = kFlowThreads;
  using Params = FlowGradWork;
  struct Shared { FlowPairs sums; };
  static Grid grid(const Params& w) { return flow_grid(w.f); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x())) return;
    const int64_t dim = w.f.p.dim;
    LaneRow with;  // what rows are multiplied with
    if constexpr (kPass == FlowGradPass::sources)
      with.set(dim, [&](int, int d) { return c.dsum(w, kDSourceFlows)[d]; });
    if constexpr (kPass == FlowGradPass::incoming) with.set(dim, [&](int, int d) { return c.dsum(w, kDSinkFlows)[d]; });
    FlowPair added;
    added.clear();
    for (int i = 0; i < kWarpTokens; ++i) token(w, c, c.begin + seam::warp() * kWarpTokens + i, with, added);
    shared.sums.put(dim, added);
    seam::sync_block();
    shared.sums.store_sum(dim, w.f.flows + c.place(w.f) * 2 * dim);
  }

  ATTN_DEVICE static void token(const Params& w, const FlowGradChunk& c, int64_t i, const LaneRow& with,
                                FlowPair& added) {
    const FlowParams& p = w.f.p;
    constexpr bool kSources = kPass == FlowGradPass::sources;
    const FlowTokens& tokens = kSources ? c.sources : c.sinks;
    if (i >= tokens.count) return;
    const T* row = flow_row<const T>(kSources ? p.k : p.q, tokens, kSources ? c.head_kv(w.f) : c.head, i);
    LaneRow x{};
    x.set(p.dim, [&](int, int d) { return flow_sigmoid(seam::to_float(row[d])); });
    float first, second = 0;  // what the row with eps weighs in the sums
    if constexpr (kPass == FlowGradPass::sinks) {
      first = c.first_sink_gradient<T>(w, i);
    } else {
      float dot = 0;
      for_lane(p.dim, [&](int j, int) { dot += x.x[j] * with.x[j]; });
      dot = lane_sum(dot);
      if constexpr (kSources) {
        const float outgoing = c.source_stat(w.f, 0)[i];
        first = c.by_source(w, w.dconserved)[i];
        second = -dot / (outgoing * outgoing);
        if (seam::lane() == 0) c.by_source(w, w.doutgoing)[i] = second;
      } else {
        const float per = 1 / c.sink_stat(w.f, 0)[i];
        first = -(c.by_sink(w, w.dots)[i] + dot * per) * per;
        if (seam::lane() == 0) c.by_sink(w, w.dincoming)[i] = first;
      }
    }
    const float eps = static_cast<float>(p.eps);
    for_lane(p.dim, [&](int j, int) {
      added.source.x[j] += first * (x.x[j] + eps);
      added.sink.x[j] += second * (x.x[j] + eps);
    });
  }
};

// d conserved of sources from d weight: weight_j (d weight_j - mean of weight d weight), 0 where it was cut. A thread
// takes a token.
struct FlowGradWeights {
  static constexpr int kThreads = kFlowChunk;
  using Params = FlowGradWork;
  struct Shared {};
  static Grid grid(const Params& w) { return flow_grid(w.f); }

  ATTN_DEVICE static void run(const Params& w, Shared&) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x())) return;
    const FlowParams& p = w.f.p;
    const int64_t t = c.begin + seam::thread();
    if (t >= c.sources.count) return;
    float mean = 0;
    if (p.head_softmax) {
      const int64_t mine = c.head;
      for (c.head = 0; c.head < p.heads; ++c.head) mean += c.source_stat(w.f, 2)[t] * c.by_source(w, w.dweight)[t];
      c.head = mine;
    } else {
      for (int i = 0; i < kFlowTiles; ++i) mean += w.total[(c.sequence * kFlowTiles + i) * p.heads + c.head].sum;
    }
    mean /= static_cast<float>(c.sources.count);
    const float slope = cut_slope(c.source_stat(w.f, 1)[t], static_cast<float>(p.clamp));
    const float norm = p.source_norm ? 1 / flow_ratio(c) : 1;
    c.by_source(w, w.dconserved)[t] = c.source_stat(w.f, 2)[t] * (c.by_source(w, w.dweight)[t] - mean) * slope * norm;
  }
};

}  // namespace attn::cuda
