// Flow attention's matrix products, 64 x 64 at a time: the sums of row (x) row over a chunk, and rows times such a sum,
// causally with the pairs of tokens of their own chunk beside it. One set of functions for the forward and the backward
// pass, which multiply the same way and differ in which rows they take.
#pragma once

#include "cuda/sm80/tile_product.h"
#include "cuda/smxx/flow_chunk.h"

namespace attn::cuda {

constexpr int kFlowTiles = static_cast<int>(kFlowChunk) / kTile;  // of tokens, in a chunk

ATTN_HD int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

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

template <class T> struct FlowProducts {
  using Product = TileProduct<T>;
  struct Shared { Tile a, b; };

  // f(row, column, element of the tile) for the calling thread's share: lanes beside each other in a row.
  template <TileRows kRows, class F> ATTN_DEVICE static void fill(Tile& tile, F&& row) {
    ATTN_UNROLL
    for (int i = 0; i < kTile; i += kTileThreads / 8) {
      const int r = i + seam::thread() / 8;
      const auto element = row(r);
      ATTN_UNROLL
      for (int j = 0; j < kTile; j += 8) {
        const int column = j + seam::thread() % 8;
        *tile.at<kRows>(r, column) = Product::operand(element(column));
      }
    }
  }

  // Rows [first, first + 64) of kept tokens, before `end`; columns from `column`.
  template <TileRows kRows>
  ATTN_DEVICE static void load_rows(Tile& tile, const FlowOperand& x, int64_t first, int64_t end, int64_t column) {
    fill<kRows>(tile, [&](int r) {
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
  template <TileRows kRows>
  ATTN_DEVICE static void load_matrix(Tile& tile, const float* x, int64_t rows, int64_t columns, int64_t row,
                                      int64_t column) {
    fill<kRows>(tile, [&](int r) {
      const float* from = x + (row + r) * columns + column;
      const int64_t left = row + r < rows ? columns - column : 0;
      return [from, left](int d) { return d < left ? from[d] : 0.f; };
    });
  }

  // sum += a_t (x) b_t over tokens [begin, end), tile (row, column) of it.
  ATTN_DEVICE static void add_pairs(Shared& s, Product& sum, const FlowOperand& a, const FlowOperand& b, int64_t begin,
                                    int64_t end, int64_t row, int64_t column) {
    ATTN_ROLLED
    for (int64_t t = begin; t < end; t += kTile) {
      seam::sync_block();
      load_rows<TileRows::summed>(s.a, a, t, end, row);
      load_rows<TileRows::summed>(s.b, b, t, end, column);
      seam::sync_block();
      sum.template multiply<TileRows::summed, TileRows::summed>(s.a, s.b);
    }
  }

  // out_t += a_t state, of 64 rows from `first`, columns from `column`. state [inner, outer], kTransposed [outer,
  // inner].
  template <bool kTransposed>
  ATTN_DEVICE static void add_state(Shared& s, Product& out, const FlowOperand& a, int64_t first, int64_t end,
                                    const float* state, int64_t outer, int64_t column) {
    constexpr TileRows kB = kTransposed ? TileRows::product : TileRows::summed;
    ATTN_ROLLED
    for (int64_t d = 0; d < a.dim; d += kTile) {
      seam::sync_block();
      load_rows<TileRows::product>(s.a, a, first, end, d);
      if constexpr (kTransposed) load_matrix<kB>(s.b, state, outer, a.dim, column, d);
      else load_matrix<kB>(s.b, state, a.dim, outer, d, column);
      seam::sync_block();
      out.template multiply<TileRows::product, kB>(s.a, s.b);
    }
  }

  // out_t += sum of (a_t . b_u) c_u over tokens u <= t (kAfter: u >= t) of [begin, end), t and columns as above.
  template <bool kAfter>
  ATTN_DEVICE static void add_chunk(Shared& s, Product& out, const FlowOperand& a, const FlowOperand& b,
                                    const FlowOperand& c, int64_t first, int64_t begin, int64_t end, int64_t column) {
    ATTN_ROLLED
    for (int64_t u = kAfter ? first : begin; kAfter ? u < end : u <= first; u += kTile)
      add_tile<kAfter>(s, out, a, b, c, first, u, end, column, [](int, int) { return 0.f; });
  }

  // The same and, over all tokens of the chunk, weight(t - first, u - begin) c_u.
  template <bool kAfter, class Weight>
  ATTN_DEVICE static void add_weighted_chunk(Shared& s, Product& out, const FlowOperand& a, const FlowOperand& b,
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
  ATTN_DEVICE static void add_tile(Shared& s, Product& out, const FlowOperand& a, const FlowOperand& b,
                                   const FlowOperand& c, int64_t first, int64_t u, int64_t end, int64_t column,
                                   Weight&& weight) {
    Product scores;
    scores.clear();
    const int64_t inner = (kAfter ? u >= first : u <= first) ? a.dim : 0;
    ATTN_ROLLED
    for (int64_t d = 0; d < inner; d += kTile) {
      seam::sync_block();
      load_rows<TileRows::product>(s.a, a, first, end, d);
      load_rows<TileRows::product>(s.b, b, u, end, d);
      seam::sync_block();
      scores.template multiply<TileRows::product, TileRows::product>(s.a, s.b);
    }
    seam::sync_block();
    const bool own = u == first;
    scores.template for_each<TileRows::product>([&](int i, int j, float x) {
      const bool seen = !own || (kAfter ? j >= i : j <= i);
      *s.a.template at<TileRows::product>(i, j) = Product::operand((seen ? x : 0) + weight(i, j));
    });
    load_rows<TileRows::summed>(s.b, c, u, end, column);
    seam::sync_block();
    out.template multiply<TileRows::product, TileRows::summed>(s.a, s.b);
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

  // What n tokens of the chunk add: a (x) b, the tile of the block.
  ATTN_DEVICE static void add(const FlowWork& w, Shared& shared, const FlowChunk& c, const FlowOperand& a,
                              const FlowOperand& b, int64_t n) {
    const int64_t across = tiles_of(w.p.dim_v);
    const int64_t row = seam::block_z() / across * kTile, column = seam::block_z() % across * kTile;
    typename Products::Product sum;
    sum.clear();
    Products::add_pairs(shared, sum, a, b, c.begin, c.begin + n, row, column);
    float* to = w.product + c.place(w) * w.p.dim * w.p.dim_v;
    sum.template for_each<TileRows::summed>([&](int i, int j, float x) {
      if (row + i < w.p.dim && column + j < w.p.dim_v) to[(row + i) * w.p.dim_v + column + j] = x;
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
    typename Products::Product out;
    out.clear();
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
    out.template for_each<TileRows::product>([&](int i, int j, float x) {
      if (first + i >= end || column + j >= p.dim_v) return;
      flow_row<T>(p.out, c.sinks, c.head, first + i)[column + j] = seam::from_float<T>(x * shared.factor[i]);
    });
  }
};

}  // namespace attn::cuda
