// Backward of causal flow attention, the passes over rows and numbers of tokens. Formulas and names:
// csrc/cpu/flow_causal_backward.h. Sums over earlier tokens are the forward's, made anew; those over later tokens run
// from the last chunk to the first. Blocks and warps as in flow_sums.h.
#pragma once

#include "cuda/smxx/flow_grad_sums.h"
#include "cuda/smxx/item_scan.h"

namespace attn::cuda {

// h, a / incoming, and what a chunk adds to the forward's sums over rows.
template <class T> struct FlowCausalSums {
  static constexpr int kThreads = kFlowThreads;
  using Params = FlowGradWork;
  struct Shared { FlowPairs sums; };
  static Grid grid(const Params& w) { return flow_grid(w.f); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x())) return;
    const FlowParams& p = w.f.p;
    FlowPair flows, normalised, x;
    flows.clear();
    normalised.clear();
    for (int i = seam::warp() * kWarpTokens; i < (seam::warp() + 1) * kWarpTokens; ++i) {
      const int64_t token = c.begin + i;
      if (token >= c.sinks.count) break;
      x.load<T>(w.f, c, i);
      const float t = static_cast<float>(token + 1);
      flows.add(p.dim, 1, 1, x);
      normalised.add(p.dim, t / c.source_stat(w.f, 0)[token], t / c.sink_stat(w.f, 0)[token], x);
      c.first_sink_gradient<T>(w, token);
    }
    shared.sums.put(p.dim, flows);
    seam::sync_block();
    shared.sums.store_sum(p.dim, w.f.flows + c.place(w.f) * 2 * p.dim);
    seam::sync_block();
    shared.sums.put(p.dim, normalised);
    seam::sync_block();
    shared.sums.store_sum(p.dim, w.f.normalised + c.place(w.f) * 2 * p.dim);
  }
};

// gamma from token to token, last one first: a thread takes a token.
struct FlowGamma {
  float weight, own, share;  // own: weight d weight; all 0 past the last token

  ATTN_DEVICE static FlowGamma of(const FlowGradWork& w, const FlowGradChunk& c, int64_t token) {
    if (token >= c.sources.count) return {0, 0, 0};
    const float weight = c.source_stat(w.f, 2)[token];
    return {weight, weight * c.by_source(w, w.dweight)[token], weight / static_cast<float>(token + 1)};
  }
  ATTN_DEVICE FlowLine line() const { return {1 - share, (1 - share) * own}; }
};

ATTN_DEVICE int64_t flow_token_from_end(const FlowChunk& c) { return c.begin + kFlowChunk - 1 - seam::thread(); }

// How gamma passes through a chunk.
struct FlowGammaLines {
  static constexpr int kThreads = kFlowChunk;
  using Params = FlowGradWork;
  struct Shared { BlockScan<FlowLine, kThreads> scan; };
  static Grid grid(const Params& w) { return flow_grid(w.f); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x())) return;
    const FlowLine all = shared.scan.of(FlowGamma::of(w, c, flow_token_from_end(c)).line()).all;
    if (seam::thread() == 0) w.lines[c.place(w.f)] = all;
  }
};

// Gradients of the conserved flows / t, in shared memory: [0] sinks, [1] sources.
struct FlowConservedGrads {
  float x[2][kFlowChunk];

  ATTN_DEVICE void put(const FlowGradWork& w, const FlowGradChunk& c, int64_t token, float dsource) {
    const bool there = token < c.sinks.count;
    const float per = 1 / static_cast<float>(token + 1);
    x[0][token - c.begin] = there ? c.sink_gradient(w, token) * per : 0;
    x[1][token - c.begin] = there ? dsource * per : 0;
  }
  // Adds what the calling warp's tokens add to beta (of sources) and alpha (of sinks).
  template <class T> ATTN_DEVICE void add_rows(const FlowGradWork& w, const FlowGradChunk& c, FlowPair& to) const {
    FlowPair row;
    for (int i = seam::warp() * kWarpTokens; i < (seam::warp() + 1) * kWarpTokens; ++i) {
      row.load<T>(w.f, c, i);
      to.add_with(w.f.p.dim, static_cast<float>(w.f.p.eps), x[1][i], x[0][i], row);
    }
  }
};

// d conserved of sources; what a chunk adds to alpha and beta.
template <class T> struct FlowCausalWeights {
  static constexpr int kThreads = kFlowThreads;
  using Params = FlowGradWork;
  struct Shared {
    FlowPairs sums;
    FlowConservedGrads conserved;
    BlockScan<FlowLine, kThreads> scan;
  };
  static Grid grid(const Params& w) { return flow_grid(w.f); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x())) return;
    const FlowParams& p = w.f.p;
    const int64_t token = flow_token_from_end(c);
    const FlowGamma own = FlowGamma::of(w, c, token);
    const FlowLine after = FlowLine::join(w.lines[c.place(w.f)], shared.scan.of(own.line()).before);
    const float gamma = own.own + after.offset;  // past the last token gamma is 0
    float d = own.own - own.share * gamma;
    if (token < c.sources.count) {
      d *= cut_slope(c.source_stat(w.f, 1)[token], static_cast<float>(p.clamp));
      c.by_source(w, w.dconserved)[token] = d;
    }
    shared.conserved.put(w, c, token, d);
    seam::sync_block();
    FlowPair added;
    added.clear();
    shared.conserved.template add_rows<T>(w, c, added);
    shared.sums.put(p.dim, added);
    seam::sync_block();
    shared.sums.store_sum(p.dim, w.conserved + c.place(w.f) * 2 * p.dim);
  }
};

// d incoming, d outgoing; what a chunk adds to kappa (of sinks) and theta (of sources).
template <class T> struct FlowCausalFlows {
  static constexpr int kThreads = kFlowThreads;
  using Params = FlowGradWork;
  struct Shared {
    FlowPairs sums;
    FlowConservedGrads conserved;
  };
  static Grid grid(const Params& w) { return flow_grid(w.f); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x())) return;
    const int64_t dim = w.f.p.dim, mine = c.begin + seam::thread();
    shared.conserved.put(w, c, mine, mine < c.sources.count ? c.by_source(w, w.dconserved)[mine] : 0);
    seam::sync_block();
    // Sums over tokens after the warp's.
    FlowPair sums, added;
    added.clear();
    shared.conserved.template add_rows<T>(w, c, added);
    shared.sums.put(dim, added);
    seam::sync_block();
    sums.set(dim, w.conserved + c.place(w.f) * 2 * dim);
    shared.sums.add_after(dim, sums);
    seam::sync_block();
    added.clear();
    for (int i = (seam::warp() + 1) * kWarpTokens - 1; i >= seam::warp() * kWarpTokens; --i)
      token(w, c, shared.conserved, i, sums, added);
    shared.sums.put(dim, added);
    seam::sync_block();
    shared.sums.store_sum(dim, w.after + c.place(w.f) * 2 * dim);
  }

  ATTN_DEVICE static void token(const Params& w, const FlowGradChunk& c, const FlowConservedGrads& conserved, int i,
                                FlowPair& sums, FlowPair& added) {
    const FlowParams& p = w.f.p;
    const int64_t token = c.begin + i;
    if (token >= c.sinks.count) return;
    const float eps = static_cast<float>(p.eps), t = static_cast<float>(token + 1);
    FlowPair x;
    x.load<T>(w.f, c, i);
    sums.add_with(p.dim, eps, conserved.x[1][i], conserved.x[0][i], x);
    float to_sink = 0, to_source = 0;
    for_lane(p.dim, [&](int j, int) {
      to_sink += x.sink.x[j] * sums.source.x[j];
      to_source += x.source.x[j] * sums.sink.x[j];
    });
    const float per_in = 1 / c.sink_stat(w.f, 0)[token], per_out = 1 / c.source_stat(w.f, 0)[token];
    const float in = -(c.by_sink(w, w.dots)[token] + lane_sum(to_sink) * t * per_in) * per_in;
    const float out = -lane_sum(to_source) * t * per_out * per_out;
    added.add_with(p.dim, eps, out, in, x);
    if (seam::lane() != 0) return;
    c.by_sink(w, w.dincoming)[token] = in;
    c.by_source(w, w.doutgoing)[token] = out;
  }
};

}  // namespace attn::cuda
