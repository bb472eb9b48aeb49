// Backward of causal flow attention: gradients of q and k. With A, F, R of a token its gradient of the conserved flow /
// t, its gradient of the flow, and t / flow, and A', F', R' those of a token on the other side,
//   d row_t = sum_{u <= t} (A_t R'_u + F_t) row'_u + sum_{u >= t} (R_t A'_u + F'_u) row'_u
// and the product's part, a sum of (g_t . x_u) source_u or (x_t . g_u) sink_u. So within a chunk all of it is one
// matrix of weights by pair times the rows of the other side; what the chunks before and after add is known by vector.
#pragma once

#include "cuda/sm80/flow_grad_product.h"

namespace attn::cuda {

// 64 rows and features of dq (kSources: dk) a block.
template <class T, bool kSources> struct FlowCausalGradRows {
  static constexpr int kThreads = kTileThreads;
  using Params = FlowGradWork;
  using Products = FlowProducts<T>;
  static constexpr int kConserved = 0, kFlow = 1, kPer = 2;  // A, F, R
  struct Shared {
    typename Products::Shared products;
    float own[3][kTile], other[3][kFlowChunk];
    float eps[kTile];  // what eps adds to all features of a row
  };
  static Grid grid(const Params& w) { return flow_grid(w.f, kFlowTiles, tiles_of(w.f.p.dim)); }

  template <int kRows>
  ATTN_DEVICE static void numbers(const Params& w, const FlowGradChunk& c, bool sources, int64_t token,
                                  float (&to)[3][kRows], int64_t at) {
    const bool there = token < c.sinks.count;
    const float t = static_cast<float>(token + 1);
    float conserved = 0, flow = 0, per = 0;
    if (there && sources) {
      conserved = c.by_source(w, w.dconserved)[token] / t;
      flow = c.by_source(w, w.doutgoing)[token];
      per = t / c.source_stat(w.f, 0)[token];
    } else if (there) {
      conserved = c.sink_gradient(w, token) / t;
      flow = c.by_sink(w, w.dincoming)[token];
      per = t / c.sink_stat(w.f, 0)[token];
    }
    to[kConserved][at] = conserved;
    to[kFlow][at] = flow;
    to[kPer][at] = per;
  }

  // eps (A_t + F_t + sum_{u >= t} (R_t A'_u + F'_u)), the sum within the chunk; row: of the tile, at: in the chunk.
  ATTN_DEVICE static float eps_part(const Shared& s, float eps, int row, int64_t tile) {
    float conserved = 0, flow = 0;
    for (int64_t u = tile + kTile; u < kFlowChunk; u += kTile) {
      conserved += lane_sum(s.other[kConserved][u + seam::lane()] + s.other[kConserved][u + 32 + seam::lane()]);
      flow += lane_sum(s.other[kFlow][u + seam::lane()] + s.other[kFlow][u + 32 + seam::lane()]);
    }
    for (int u = kTile - 1; u >= 0; --u) {
      conserved += u >= row ? s.other[kConserved][tile + u] : 0;
      flow += u >= row ? s.other[kFlow][tile + u] : 0;
    }
    return eps * (s.own[kConserved][row] + s.own[kFlow][row] + s.own[kPer][row] * conserved + flow);
  }

  ATTN_DEVICE static void run(const Params& w, Shared& shared) {
    FlowGradChunk c;
    if (!c.open(w, seam::block_x() / kFlowTiles)) return;
    const FlowParams& p = w.f.p;
    const FlowTokens& tokens = kSources ? c.sources : c.sinks;
    const int64_t tile = seam::block_x() % kFlowTiles * kTile;  // in the chunk
    const int64_t first = c.begin + tile, end = c.begin + c.sink_count();
    if (first >= end) return;
    const int64_t column = static_cast<int64_t>(seam::block_z()) * kTile;
    const int thread = seam::thread();
    if (thread < kTile) numbers(w, c, kSources, first + thread, shared.own, thread);
    for (int i = thread; i < kFlowChunk; i += kThreads) numbers(w, c, !kSources, c.begin + i, shared.other, i);
    seam::sync_block();
    const float of_eps = eps_part(shared, static_cast<float>(p.eps), thread % kTile, tile);
    if (thread < kTile) shared.eps[thread] = of_eps;

    const FlowOperand x = FlowOperand::values(w.f, c), g = flow_gradients(w, c);
    const FlowOperand &a = kSources ? x : g, &b = kSources ? g : x;
    TileSums d;
    clear_sums(d);
    Products::template add_state<true>(shared.products, d, a, first, end, w.f.product + c.place(w.f) * p.dim * p.dim_v,
                                       p.dim, column);
    const auto weight = [&](int i, int64_t u) {
      float sum = 0;
      if (u <= tile + i) sum += shared.own[kConserved][i] * shared.other[kPer][u] + shared.own[kFlow][i];
      if (u >= tile + i) sum += shared.own[kPer][i] * shared.other[kConserved][u] + shared.other[kFlow][u];
      return sum;
    };
    Products::template add_weighted_chunk<kSources>(
        shared.products, d, a, b, kSources ? FlowOperand::sinks(w.f, c) : FlowOperand::sources(w.f, c), first, c.begin,
        end, column, weight);

    const int64_t vector = (c.place(w.f) * 2 + (kSources ? 1 : 0)) * p.dim;
    const float *conserved = w.f.normalised + vector, *flow = w.f.flows + vector;
    const float *later_conserved = w.conserved + vector, *later_flow = w.after + vector;
    for_sums([&](int n, int e, int i, int j) {
      const int64_t f = column + j;
      if (first + i >= end || f >= p.dim) return;
      const float sum = d[n][e] + shared.own[kConserved][i] * conserved[f] + shared.own[kFlow][i] * flow[f] +
                        shared.own[kPer][i] * later_conserved[f] + later_flow[f] + shared.eps[i];
      const T* row = flow_row<const T>(kSources ? p.k : p.q, tokens, kSources ? c.head_kv(w.f) : c.head, first + i);
      const float value = flow_sigmoid(seam::to_float(row[f]));
      flow_row<T>(kSources ? w.dk : w.dq, tokens, c.head, first + i)[f] =
          seam::from_float<T>(sum * value * (1 - value));
    });
  }
};

}  // namespace attn::cuda
