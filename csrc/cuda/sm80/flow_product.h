// Flow attention's matrix products, 64 x 64 at a time: the sums of row (x) row over a chunk, and rows times such a sum,
// causally with the pairs of tokens of their own chunk beside it. One set of functions for the forward and the backward
// pass, which multiply the same way and differ in which rows they take.
#pragma once

#include "cuda/sm80/float_tile.h"
#include "cuda/sm80/tile_product.h"
#include "cuda/smxx/flow_chunk.h"

namespace attn::cuda {

static_assert(kFlowTiles * kTile == kFlowChunk);

// Rows of an operand by kept token: sigmoid(x), or x times a number of the token.
struct FlowOperand {
  View4 x;
  FlowTokens tokens;
  int64_t head, dim;
  bool sigmoid;
  const float* scale;  // null: 1

  ATTN_DEVICE static FlowOperand sinks(const FlowWork& w, const FlowChunk& c) {
    return {w.p.q, c.sinks, c.head, w.p.dim, true, nullptr};
  }
  ATTN_DEVICE static FlowOperand sources(const FlowWork& w, const FlowChunk& c) {
    return {w.p.k, c.sources, c.head_kv(w), w.p.dim, true, nullptr};
  }
  ATTN_DEVICE static FlowOperand values(const FlowWork& w, const FlowChunk& c) {
    return {w.p.v, c.sources, c.head_kv(w), w.p.dim_v, false, c.source_stat(w, 2)};
  }
};

// As tf32, for float32 tensors in two parts: also for bf16 and f16, with the range of float32 (running sums leave that
// of f16) and the precision of f16.
template <class T> struct FlowProducts {
  using Tile = FloatTile<sizeof(T) == 4>;
  struct Shared { Tile a, b; };

  // f(row, column, element of the tile) for the calling thread's share: lanes beside each other in a row.
  template <class F> ATTN_DEVICE static void fill(Tile& tile, F&& row) {
    ATTN_UNROLL
    for (int i = 0; i < kTile; i += kTileThreads / 8) {
      const int r = i + seam::thread() / 8;
      const auto element = row(r);
      ATTN_UNROLL
      for (int j = 0; j < kTile; j += 8) {
        const int column = j + seam::thread() % 8;
        tile.put(r, column, element(column));
      }
    }
  }

  // Rows [first, first + 64) of kept tokens, before `end`; columns from `column`.
  ATTN_DEVICE static void load_rows(Tile& tile, const FlowOperand& x, int64_t first, int64_t end, int64_t column) {
    fill(tile, [&](int r) {
      const bool there = first + r < end;
      const T* row = there ? flow_row<const T>(x.x, x.tokens, x.head, first + r) + column : nullptr;
      const float scale = there && x.scale ? x.scale[first + r] : 1;
      const int64_t left = there ? x.dim - column : 0;
      return [row, scale, left, sigmoid = x.sigmoid](int d) {
        if (d >= left) return 0.f;
        const float value = seam::to_float(row[d]);
        return sigmoid ? flow_sigmoid(value) : scale * value;
      };
    });
  }

  // A [rows, columns] matrix from (row, column) on.
  ATTN_DEVICE static void load_matrix(Tile& tile, const float* x, int64_t rows, int64_t columns, int64_t row,
                                      int64_t column) {
    fill(tile, [&](int r) {
      const float* from = x + (row + r) * columns + column;
      const int64_t left = row + r < rows ? columns - column : 0;
      return [from, left](int d) { return d < left ? from[d] : 0.f; };
    });
  }

  // sum += a_t (x) b_t over tokens [begin, end), tile (row, column) of it.
  ATTN_DEVICE static void add_pairs(Shared& s, TileSums& sum, const FlowOperand& a, const FlowOperand& b, int64_t begin,
                                    int64_t end, int64_t row, int64_t column) {
    ATTN_ROLLED
    for (int64_t t = begin; t < end; t += kTile) {
      seam::sync_block();
      load_rows(s.a, a, t, end, row);
      load_rows(s.b, b, t, end, column);
      seam::sync_block();
      add_product<TileRows::summed, TileRows::summed>(sum, s.a, s.b);
    }
  }

  // out_t += a_t state, of 64 rows from `first`, columns from `column`. state [inner, outer], kTransposed [outer,
  // inner].
  template <bool kTransposed>
  ATTN_DEVICE static void add_state(Shared& s, TileSums& out, const FlowOperand& a, int64_t first, int64_t end,
                                    const float* state, int64_t outer, int64_t column) {
    constexpr TileRows kB = kTransposed ? TileRows::product : TileRows::summed;
    ATTN_ROLLED
    for (int64_t d = 0; d < a.dim; d += kTile) {
      seam::sync_block();
      load_rows(s.a, a, first, end, d);
      if constexpr (kTransposed) load_matrix(s.b, state, outer, a.dim, column, d);
      else load_matrix(s.b, state, a.dim, outer, d, column);
      seam::sync_block();
      add_product<TileRows::product, kB>(out, s.a, s.b);
    }
  }

  // out_t += sum of (a_t . b_u) c_u over tokens u <= t (kAfter: u >= t) of [begin, end), t and columns as above.
  template <bool kAfter>
  ATTN_DEVICE static void add_chunk(Shared& s, TileSums& out, const FlowOperand& a, const FlowOperand& b,
                                    const FlowOperand& c, int64_t first, int64_t begin, int64_t end, int64_t column) {
    ATTN_ROLLED
    for (int64_t u = kAfter ? first : begin; kAfter ? u < end : u <= first; u += kTile)
      add_tile<kAfter>(s, out, a, b, c, first, u, end, column, [](int, int) { return 0.f; });
  }

  // The same and, over all tokens of the chunk, weight(t - first, u - begin) c_u.
  template <bool kAfter, class Weight>
  ATTN_DEVICE static void add_weighted_chunk(Shared& s, TileSums& out, const FlowOperand& a, const FlowOperand& b,
                                             const FlowOperand& c, int64_t first, int64_t begin, int64_t end,
                                             int64_t column, Weight&& weight) {
    ATTN_ROLLED
    for (int64_t u = begin; u < end; u += kTile) {
      add_tile<kAfter>(s, out, a, b, c, first, u, end, column, [&](int i, int j) { return weight(i, u - begin + j); });
    }
  }

 private:
  // Of 64 tokens u. Pairs that the order forbids have no score, but a weight.
  template <bool kAfter, class Weight>
  ATTN_DEVICE static void add_tile(Shared& s, TileSums& out, const FlowOperand& a, const FlowOperand& b,
                                   const FlowOperand& c, int64_t first, int64_t u, int64_t end, int64_t column,
                                   Weight&& weight) {
    TileSums scores;
    clear_sums(scores);
    const int64_t inner = (kAfter ? u >= first : u <= first) ? a.dim : 0;
    ATTN_ROLLED
    for (int64_t d = 0; d < inner; d += kTile) {
      seam::sync_block();
      load_rows(s.a, a, first, end, d);
      load_rows(s.b, b, u, end, d);
      seam::sync_block();
      add_product<TileRows::product, TileRows::product>(scores, s.a, s.b);
    }
    seam::sync_block();
    const bool own = u == first;
    for_sums([&](int n, int e, int i, int j) {
      const bool seen = !own || (kAfter ? j >= i : j <= i);
      s.a.put(i, j, (seen ? scores[n][e] : 0) + weight(i, j));
    });
    load_rows(s.b, c, u, end, column);
    seam::sync_block();
    add_product<TileRows::product, TileRows::summed>(out, s.a, s.b);
  }
};

// source (x) weight v, summed over a chunk. Block z: tile of [D, Dv].
template <class T> struct FlowChunkProduct {
  static constexpr int kThreads = kTileThreads;
  using Params = FlowWork;
  using Products = FlowProducts<T>;
  using Shared = typename Products::Shared;
  static Grid grid(const FlowWork& w) { return flow_grid(w, 1, tiles_of(w.p.dim) * tiles_of(w.p.dim_v)); }

  ATTN_DEVICE static void run(const FlowWork& w, Shared& shared) {
    FlowChunk c;
    if (!c.open(w, seam::block_x())) return;
    add(w, shared, c, FlowOperand::sources(w, c), FlowOperand::values(w, c), c.source_count());
  }

  // What so many tokens of the chunk add: a (x) b, the tile of the block.
  ATTN_DEVICE static void add(const FlowWork& w, Shared& shared, const FlowChunk& c, const FlowOperand& a,
                              const FlowOperand& b, int64_t tokens) {
    const int64_t across = tiles_of(w.p.dim_v);
    const int64_t row = seam::block_z() / across * kTile, column = seam::block_z() % across * kTile;
    TileSums sum;
    clear_sums(sum);
    Products::add_pairs(shared, sum, a, b, c.begin, c.begin + tokens, row, column);
    float* to = w.product + c.place(w) * w.p.dim * w.p.dim_v;
    for_sums([&](int n, int e, int i, int j) {
      if (row + i < w.p.dim && column + j < w.p.dim_v) to[(row + i) * w.p.dim_v + column + j] = sum[n][e];
    });
  }
};

// Rows of the result: 64 tokens and features a block.
template <class T> struct FlowOut {
  static constexpr int kThreads = kTileThreads;
  using Params = FlowWork;
  using Products = FlowProducts<T>;
  struct Shared {
    typename Products::Shared products;
    float factor[kTile];  // sigmoid(conserved n / m) / incoming
  };
  static Grid grid(const FlowWork& w) { return flow_grid(w, kFlowTiles, tiles_of(w.p.dim_v)); }

  ATTN_DEVICE static void run(const FlowWork& w, Shared& shared) {
    FlowChunk c;
    if (!c.open(w, seam::block_x() / kFlowTiles)) return;
    const FlowParams& p = w.p;
    const int64_t first = c.begin + seam::block_x() % kFlowTiles * kTile, end = c.begin + c.sink_count();
    if (first >= end) return;
    const int64_t column = static_cast<int64_t>(seam::block_z()) * kTile;
    const bool sources = c.sources.count > 0;
    if (seam::thread() < kTile) {
      const int64_t t = first + seam::thread();
      const float ratio = p.causal || !sources ? 1 : flow_ratio(c);
      const bool there = t < end && sources;
      shared.factor[seam::thread()] = there ? flow_sigmoid(c.sink_stat(w, 1)[t] * ratio) / c.sink_stat(w, 0)[t] : 0;
    }
    TileSums out;
    clear_sums(out);
    const FlowOperand sink = FlowOperand::sinks(w, c);
    if (sources) {
      const float* state = p.causal ? w.product + c.place(w) * p.dim * p.dim_v
                                    : static_cast<const float*>(p.product) + c.group(w) * p.dim * p.dim_v;
      Products::template add_state<false>(shared.products, out, sink, first, end, state, p.dim_v, column);
    } else {
      seam::sync_block();
    }
    if (p.causal) {
      Products::template add_chunk<false>(shared.products, out, sink, FlowOperand::sources(w, c),
                                          FlowOperand::values(w, c), first, c.begin, end, column);
    }
    for_sums([&](int n, int e, int i, int j) {
      if (first + i >= end || column + j >= p.dim_v) return;
      flow_row<T>(p.out, c.sinks, c.head, first + i)[column + j] = seam::from_float<T>(out[n][e] * shared.factor[i]);
    });
  }
};

}  // namespace attn::cuda
