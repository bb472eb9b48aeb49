// Backward of flow attention, the matrix products: sink (x) gradient summed over a chunk; gradients of v and of the
// weights; those of q and k, to which the passes over rows (flow_grad_sums.h) add what came through the flows.
#pragma once

#include "cuda/sm80/flow_product.h"
#include "cuda/smxx/flow_grad_sums.h"

namespace attn::cuda {

// a / incoming dout
ATTN_DEVICE FlowOperand flow_gradients(const FlowGradWork& w, const FlowGradChunk& c) {
  return {w.dout, c.sinks, c.head, w.f.p.dim_v, false, c.by_sink(w, w.scale)};
}

template <class T> struct FlowGradChunkProduct {
  static constexpr int kThreads = kTileThreads;
  using Params = FlowGradWork;
  using Shared = typename FlowProducts<T>::Shared;
  static Grid grid(const Params& w) { return FlowChunkProduct<T>::grid(w.f); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x())) return;
    FlowChunkProduct<T>::add(w.f, shared, c, FlowOperand::sinks(w.f, c), flow_gradients(w, c), c.sink_count());
  }
};

// 64 sources a block: d (weight v) = source . dproduct, of which dv and d weight follow. Causally dproduct is the sum
// over the source's own token and later ones.
template <class T> struct FlowGradValues {
  static constexpr int kThreads = kTileThreads;
  using Params = FlowGradWork;
  using Products = FlowProducts<T>;
  struct Shared {
    typename Products::Shared products;
    float part[kTile];
  };
  static Grid grid(const Params& w) { return flow_grid(w.f, kFlowTiles); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x() / kFlowTiles)) return;
    const FlowParams& p = w.f.p;
    const int64_t first = c.begin + seam::block_x() % kFlowTiles * kTile, end = c.begin + c.source_count();
    const float* weight = c.source_stat(w.f, 2);
    const float* state =
        p.causal ? w.f.product + c.place(w.f) * p.dim * p.dim_v : w.dproduct + c.group(w.f) * p.dim * p.dim_v;
    const int64_t mine = first + seam::thread();
    const bool there = seam::thread() < kTile && mine < end;
    float dweight = 0;
    ATTN_ROLLED
    for (int64_t column = 0; first < end && column < p.dim_v; column += kTile) {
      TileSums dx;
      clear_sums(dx);
      const FlowOperand source = FlowOperand::sources(w.f, c);
      Products::template add_state<false>(shared.products, dx, source, first, end, state, p.dim_v, column);
      if (p.causal) {
        Products::template add_chunk<true>(shared.products, dx, source, FlowOperand::sinks(w.f, c),
                                           flow_gradients(w, c), first, c.begin, end, column);
      }
      seam::sync_block();
      typename Products::Tile& tile = shared.products.a;
      for_sums([&](int n, int e, int i, int j) {
        const float x = dx[n][e];
        const bool inside = first + i < end && column + j < p.dim_v;
        float part = 0;
        if (inside) {
          part = x * seam::to_float(flow_row<const T>(p.v, c.sources, c.head_kv(w.f), first + i)[column + j]);
          flow_row<T>(w.dv, c.sources, c.head, first + i)[column + j] = seam::from_float<T>(x * weight[first + i]);
        }
        *tile.element(i, j) = part;
      });
      seam::sync_block();
      for (int j = 0; seam::thread() < kTile && j < kTile; ++j) dweight += tile.get(seam::thread(), j);
    }
    if (there) c.by_source(w, w.dweight)[mine] = dweight;
    if (p.causal) return;
    if (seam::thread() < kTile) shared.part[seam::thread()] = there ? dweight * weight[mine] : 0;
    seam::sync_block();
    if (seam::thread() != 0) return;
    float sum = 0;
    for (int i = 0; i < kTile; ++i) sum += shared.part[i];
    w.weighed[static_cast<int64_t>(seam::block_x()) * p.heads + c.head] = {sum};
  }
};

// 64 rows and features of dq (kSources: dk) a block.
template <class T, bool kSources> struct FlowGradRows {
  static constexpr int kThreads = kTileThreads;
  using Params = FlowGradWork;
  using Products = FlowProducts<T>;
  struct Shared {
    typename Products::Shared products;
    float factor[3][kTile];  // of a row: what the vectors below weigh
  };
  static Grid grid(const Params& w) { return flow_grid(w.f, kFlowTiles, tiles_of(w.f.p.dim)); }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x() / kFlowTiles)) return;
    const FlowParams& p = w.f.p;
    const FlowTokens& tokens = kSources ? c.sources : c.sinks;
    const int64_t first = c.begin + seam::block_x() % kFlowTiles * kTile;
    const int64_t end = c.begin + (kSources ? c.source_count() : c.sink_count());
    if (first >= end) return;
    const int64_t column = static_cast<int64_t>(seam::block_z()) * kTile;
    if (const int64_t t = first + seam::thread(); seam::thread() < kTile) {
      float conserved = 0, per = 0, flow = 0;
      if (t < end) {
        conserved = kSources ? c.by_source(w, w.dconserved)[t] : c.sink_gradient(w, t);
        per = 1 / (kSources ? c.source_stat(w.f, 0) : c.sink_stat(w.f, 0))[t];
        flow = kSources ? c.by_source(w, w.doutgoing)[t] : c.by_sink(w, w.dincoming)[t];
      }
      shared.factor[0][seam::thread()] = conserved;
      shared.factor[1][seam::thread()] = per;
      shared.factor[2][seam::thread()] = flow;
    }
    TileSums d;
    clear_sums(d);
    const int64_t group = c.group(w.f) * p.dim * p.dim_v;
    const float* state = kSources ? w.dproduct + group : static_cast<const float*>(p.product) + group;
    Products::template add_state<true>(shared.products, d,
                                       kSources ? FlowOperand::values(w.f, c) : flow_gradients(w, c), first, end, state,
                                       p.dim, column);
    // The sums that the conserved flow and the flow are dots with, and the gradients of those that the row is part of.
    const float *conserved = c.sum(w, kSources ? 3 : 2), *flow = c.sum(w, kSources ? 1 : 0);
    const float* dnormalised = c.dsum(w, kSources ? kDSourceFlows : kDSinkFlows);
    const float* dsum = c.dsum(w, kSources ? kDSources : kDSinks);
    const float eps = static_cast<float>(p.eps);
    for_sums([&](int n, int e, int i, int j) {
      const int64_t f = column + j;
      if (first + i >= end || f >= p.dim) return;
      const float x = d[n][e] + shared.factor[0][i] * (conserved[f] + eps) + shared.factor[1][i] * dnormalised[f] +
                      shared.factor[2][i] * (flow[f] + eps) + dsum[f];
      const T* row = flow_row<const T>(kSources ? p.k : p.q, tokens, kSources ? c.head_kv(w.f) : c.head, first + i);
      const float value = flow_sigmoid(seam::to_float(row[f]));
      flow_row<T>(kSources ? w.dk : w.dq, tokens, c.head, first + i)[f] = seam::from_float<T>(x * value * (1 - value));
    });
  }
};

}  // namespace attn::cuda
