// Flow attention's passes over rows of q and k: their sums, the flow through every sink and source, and the same once
// the other side conserves it (attn/flow.h). Causally sums run up to the token itself. A block takes a chunk of 256
// tokens, a warp 32 of them one after another, features in lanes. For every architecture; memory-bound.
#pragma once

#include "cuda/smxx/flow_chunk.h"
#include "cuda/smxx/lane_row.h"

namespace attn::cuda {

constexpr int kFlowThreads = 256, kFlowWarps = kFlowThreads / 32, kWarpTokens = 32;
static_assert(kFlowWarps * kWarpTokens == kFlowChunk);

// Two rows that belong together: of sources and of sinks.
struct FlowPair {
  LaneRow source, sink;

  ATTN_DEVICE void clear() {
    source.clear();
    sink.clear();
  }
  // sigmoid(k), sigmoid(q) of token i of the chunk; zeros past the last one.
  template <class T> ATTN_DEVICE void load(const FlowWork& w, const FlowChunk& c, int64_t i) {
    clear();
    const auto load = [&](const View4& x, const FlowTokens& t, int64_t head, LaneRow& to) {
      if (c.begin + i >= t.count) return;
      const T* row = flow_row<const T>(x, t, head, c.begin + i);
      to.set(w.p.dim, [&](int, int d) { return flow_sigmoid(seam::to_float(row[d])); });
    };
    load(w.p.k, c.sources, c.head_kv(w), source);
    load(w.p.q, c.sinks, c.head, sink);
  }
  ATTN_DEVICE void add(int64_t dim, float of_source, float of_sink, const FlowPair& x) {
    source.add(dim, of_source, x.source);
    sink.add(dim, of_sink, x.sink);
  }
  // The same of rows with eps added to every feature.
  ATTN_DEVICE void add_with(int64_t dim, float eps, float of_source, float of_sink, const FlowPair& x) {
    for_lane(dim, [&](int j, int) {
      source.x[j] += of_source * (x.source.x[j] + eps);
      sink.x[j] += of_sink * (x.sink.x[j] + eps);
    });
  }
  // [2][dim]
  ATTN_DEVICE void set(int64_t dim, const float* from) {
    source.set(dim, [&](int, int d) { return from[d]; });
    sink.set(dim, [&](int, int d) { return from[dim + d]; });
  }
};

// What the warps of a block hold, [2][dim] each.
struct FlowPairs {
  float x[kFlowWarps][2][kFlowMaxDim];

  ATTN_DEVICE void put(int64_t dim, const FlowPair& pair) {
    for_lane(dim, [&](int j, int d) {
      x[seam::warp()][0][d] = pair.source.x[j];
      x[seam::warp()][1][d] = pair.sink.x[j];
    });
  }
  // The sum of warps before the calling one, or after it, added to `to`.
  ATTN_DEVICE void add_before(int64_t dim, FlowPair& to) const { add(dim, 0, seam::warp(), to); }
  ATTN_DEVICE void add_after(int64_t dim, FlowPair& to) const { add(dim, seam::warp() + 1, kFlowWarps, to); }
  ATTN_DEVICE void add(int64_t dim, int begin, int end, FlowPair& to) const {
    for (int i = begin; i < end; ++i) {
      for_lane(dim, [&](int j, int d) {
        to.source.x[j] += x[i][0][d];
        to.sink.x[j] += x[i][1][d];
      });
    }
  }
  // The sum of all, written by the block.
  ATTN_DEVICE void store_sum(int64_t dim, float* to) const {
    for (int64_t i = seam::thread(); i < 2 * dim; i += kFlowThreads) {
      float sum = 0;
      for (int j = 0; j < kFlowWarps; ++j) sum += x[j][i / dim][i % dim];
      to[i] = sum;
    }
  }
};

// Sums of the rows of a chunk.
template <class T> struct FlowSums {
  static constexpr int kThreads = kFlowThreads;
  using Params = FlowWork;
  struct Shared { FlowPairs sums; };
  static Grid grid(const FlowWork& w) { return flow_grid(w); }

  ATTN_DEVICE static void run(const FlowWork& w, Shared& shared) {
    FlowChunk c;
    if (!c.open(w, seam::block_x())) return;
    const int64_t dim = w.p.dim;
    FlowPair sum, x;
    sum.clear();
    for (int i = 0; i < kWarpTokens; ++i) {
      x.load<T>(w, c, seam::warp() * kWarpTokens + i);
      sum.add(dim, 1, 1, x);
    }
    shared.sums.put(dim, sum);
    seam::sync_block();
    shared.sums.store_sum(dim, w.flows + c.place(w) * 2 * dim);
  }
};

// kConserved false: incoming and outgoing, and what a chunk adds to the sums of source / outgoing and sink / incoming.
// true: the conserved flows, from those sums, and the mass of exp(conserved) of the chunk's sources.
template <class T, bool kConserved> struct FlowDots {
  static constexpr int kThreads = kFlowThreads;
  using Params = FlowWork;
  struct Shared {
    FlowPairs sums;
    FlowMass mass[kFlowWarps];
  };
  static Grid grid(const FlowWork& w) { return flow_grid(w); }

  // What tokens weigh in the sums that the dots are with.
  struct Weights {
    const float *outgoing, *incoming;

    ATTN_DEVICE void of(const FlowChunk& c, int64_t i, float& source, float& sink) const {
      const float t = static_cast<float>(c.begin + i + 1);
      const bool there = c.begin + i < c.sinks.count;
      source = !there ? 0 : kConserved ? t / outgoing[c.begin + i] : 1;
      sink = !there ? 0 : kConserved ? t / incoming[c.begin + i] : 1;
    }
  };

  ATTN_DEVICE static void run(const FlowWork& w, Shared& shared) {
    FlowChunk c;
    if (!c.open(w, seam::block_x())) return;
    const FlowParams& p = w.p;
    const int64_t dim = p.dim, first = seam::warp() * kWarpTokens;
    const Weights weights{c.source_stat(w, 0), c.sink_stat(w, 0)};
    FlowPair sums, x, added;
    if (p.causal) {
      // Sums up to the warp's first token.
      added.clear();
      for (int i = 0; i < kWarpTokens; ++i) {
        float source, sink;
        weights.of(c, first + i, source, sink);
        x.load<T>(w, c, first + i);
        added.add(dim, source, sink, x);
      }
      shared.sums.put(dim, added);
      seam::sync_block();
      sums.set(dim, (kConserved ? w.normalised : w.flows) + c.place(w) * 2 * dim);
      shared.sums.add_before(dim, sums);
      seam::sync_block();
    } else {
      sums.set(dim, static_cast<const float*>(p.sums) + (c.group(w) * 4 + (kConserved ? 2 : 0)) * dim);
    }
    added.clear();
    FlowMass mass{0, 0};
    for (int i = 0; i < kWarpTokens; ++i) token(w, c, weights, first + i, sums, x, added, mass);
    if constexpr (kConserved) {
      if (seam::lane() == 0) shared.mass[seam::warp()] = mass;
      seam::sync_block();
      if (seam::thread() != 0) return;
      mass = {0, 0};
      for (int i = 0; i < kFlowWarps; ++i) mass = FlowMass::join(mass, shared.mass[i]);
      w.mass[c.place(w)] = mass;
    } else {
      shared.sums.put(dim, added);
      seam::sync_block();
      shared.sums.store_sum(dim, w.normalised + c.place(w) * 2 * dim);
    }
  }

  ATTN_DEVICE static void token(const FlowWork& w, const FlowChunk& c, const Weights& weights, int64_t i,
                                FlowPair& sums, FlowPair& x, FlowPair& added, FlowMass& mass) {
    const FlowParams& p = w.p;
    const float eps = static_cast<float>(p.eps), outside = static_cast<float>(p.outside);
    const bool sink = c.begin + i < c.sinks.count, source = c.begin + i < c.sources.count;
    x.load<T>(w, c, i);
    if (p.causal) {
      float of_source, of_sink;
      weights.of(c, i, of_source, of_sink);
      sums.add(p.dim, of_source, of_sink, x);
    }
    float to_sink = 0, to_source = 0;
    for_lane(p.dim, [&](int j, int) {
      to_sink += (x.sink.x[j] + eps) * (sums.source.x[j] + eps);
      to_source += (x.source.x[j] + eps) * (sums.sink.x[j] + eps);
    });
    to_sink = lane_sum(to_sink) + outside;
    to_source = lane_sum(to_source) + outside;
    const float t = p.causal ? static_cast<float>(c.begin + i + 1) : 1;
    if constexpr (kConserved) {
      to_sink /= t;
      to_source /= t;
      if (p.source_norm && c.sinks.count > 0) to_source /= flow_ratio(c);
      if (source) mass = FlowMass::join(mass, {cut_flow(to_source, static_cast<float>(p.clamp)), 1});
    } else {
      added.add(p.dim, source ? t / to_source : 0, sink ? t / to_sink : 0, x);
    }
    if (seam::lane() == 0) {
      const int kind = kConserved ? 1 : 0;
      if (sink) c.sink_stat(w, kind)[c.begin + i] = to_sink;
      if (source) c.source_stat(w, kind)[c.begin + i] = to_source;
    }
  }
};

}  // namespace attn::cuda
