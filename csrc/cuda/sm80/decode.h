// Attention of a few query rows against many keys (decoding), sm_80 and later: bound by reading K and V once. A block
// takes up to 16 rows, the heads of a GQA group packed, and one part of the keys (decode_split.h); its partial results
// are merged exactly by MergeSplits (smxx/merge_states.h).
//
// The floor is (bytes of the keys in reach) / (bandwidth of memory). To keep memory busy a block has two tiles of 64
// keys in shared memory, one that is read while the other arrives by cp.async in 16-byte pieces along the features: 32
// KiB in flight at kDim = 128, with two blocks on an SM of an A100 or H100 three times what latency times bandwidth
// asks for. One barrier a tile. Sixteen rows on tensor cores take a quarter of the time that the tile's bytes take to
// arrive there, so rows that aren't used cost nothing; of float32 (tiles of 32 keys, two warps) three quarters. Shared
// memory: 43, 77 and 145 KiB for kDim = 64, 128 and 256.
#pragma once

#include "cuda/decode_split.h"
#include "cuda/grid.h"
#include "cuda/sm80/warp_attend.h"

namespace attn::cuda {

// kDim: 64, 128 or 256, at least the features of q, k and v.
template <class T, int kDim> struct Decode {
  static constexpr int kKeys = kTileKeysOf<T>, kWarpKeys = 16, kWarps = kKeys / kWarpKeys, kThreads = 32 * kWarps;
  static_assert(kWarpRows == kSplitRows);
  static constexpr int kStages = 2, kTiles = kStages + 1, kPitch = kDim + 8;
  using Tile = KeyTile<kKeys>;
  using Warp = WarpAttend<T, kDim, kWarpKeys>;
  using State = typename Warp::State;
  using Params = DecodeParams;

  struct Stage { SharedRows<T, kDim, kKeys> k, v; };
  // What warps found for the same rows and different keys.
  struct Found {
    float out[kWarps][kWarpRows][kPitch];  // the pitch keeps the rows of a store in different banks
    float top[kWarps][kWarpRows], sum[kWarps][kWarpRows];
  };
  struct Shared {
    SharedRows<T, kDim, kWarpRows> q;
    union {
      Stage stage[kStages];
      Found found;
    };
    Tile tile[kTiles];
    RowItem item;
    bool open;
  };

  static Grid grid(const Params& p) {
    return {DecodeGrid::places(p.attend), DecodeGrid::head_groups(p.attend), p.blocks};
  }

  // A ring of stages and, one further, of tiles. When all have passed the barrier of a tile, the one before it is done
  // with: its stage is loaded anew, and warp 0 writes another tile's keys where its were.
  ATTN_DEVICE static void attend(const AttendParams& p, const RowItem& item, KeyRange range, Shared& shared,
                                 State& state) {
    const bool segments = p.segment_k.data;
    const int key = seam::warp() * kWarpKeys;
    RowsReach reach = RowsReach::of(p, item, 0, item.rows);
    typename Warp::Row rows[2];
    Warp::load_rows(p, item, 0, rows, reach);
    int32_t next = range.begin;
    auto fill = [&](int i) { next = fill_key_tile(p, item, next, range.end, shared.tile[i]); };
    auto load = [&](int tile, int stage) {
      Stage& s = shared.stage[stage];
      if (shared.tile[tile].n > 0) load_keys<kThreads>(p, item, shared.tile[tile], s.k, s.v);
      seam::copy_commit();
    };
    if (seam::warp() == 0) {
      for (int i = 0; i < kStages; ++i) fill(i);
    }
    seam::sync_block();
    for (int i = 0; i < kStages - 1; ++i) load(i, i);
    for (int tile = 0, stage = 0;;) {
      const Tile& t = shared.tile[tile];
      if (t.n == 0) break;
      seam::copy_wait<kStages - 2>();
      seam::sync_block();
      const int before = tile == 0 ? kTiles - 1 : tile - 1, ahead = before == 0 ? kTiles - 1 : before - 1;
      load(ahead, stage == 0 ? kStages - 1 : stage - 1);
      if (seam::warp() == 0) fill(before);
      if (!reach.sees_none(t, segments)) {
        const bool masked = !reach.sees_all(t, segments);
        Stage& s = shared.stage[stage];
        typename Warp::Scores scores;
        Warp::multiply_keys(shared.q, 0, s.k, key, scores);
        Warp::modify(p, t, key, rows, masked, scores);
        Warp::softmax(scores, state);
        if ((masked || Products<T>::kSplit) && seam::any(!s.v.template warp_finite<kWarpKeys>(key)))
          Warp::multiply_values_not_finite(s.v, key, scores, state);
        else Warp::multiply_values(s.v, key, scores, state);
      }
      tile = tile + 1 == kTiles ? 0 : tile + 1;
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    seam::copy_wait<0>();
  }

  ATTN_DEVICE static void store_found(State& state, Found& found) {
    const int w = seam::warp(), column = 2 * (seam::lane() % 4);
    state.add_up();
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int r = Warp::row_of(0, i);
      if (column == 0) {
        found.top[w][r] = state.top[i];
        found.sum[w][r] = state.sum[i];
      }
      ATTN_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        found.out[w][r][8 * n + column] = state.out[n][2 * i];
        found.out[w][r][8 * n + column + 1] = state.out[n][2 * i + 1];
      }
    }
  }

  // Merges the warps, in their order, and writes the rows: a warp takes a row, a lane pairs of its features.
  ATTN_DEVICE static void finish(const Params& params, const RowItem& item, int64_t split, const Found& found) {
    const AttendParams& p = params.attend;
    const bool pairs = stores_pairs<T>(p.out), partial = params.splits > 1;
    const int64_t rows = p.batch * p.heads * p.tq;
    for (int32_t r = seam::warp(); r < item.rows; r += kWarps) {
      float top = -INFINITY, sum = 0, share[kWarps];
      ATTN_UNROLL
      for (int w = 0; w < kWarps; ++w) top = std::fmax(top, found.top[w][r]);
      ATTN_UNROLL
      for (int w = 0; w < kWarps; ++w) {
        share[w] = seam::exp2_fast(found.top[w][r] - (top == -INFINITY ? 0 : top));
        sum += share[w] * found.sum[w][r];
      }
      float factor, lse;
      finish_row_of(p, item, r, top, sum, split == 0, factor, lse);
      const int64_t at = lse_index(p, item, r);
      if (seam::lane() == 0) {
        if (partial) params.partial_lse[split * rows + at] = lse;
        else static_cast<float*>(p.lse)[at] = lse;
      }
      if (partial && lse == -INFINITY) continue;  // never read
      float* to = partial ? params.partial + (split * rows + at) * p.dim_v : nullptr;
      T* out = out_row<T>(p, item, r);
      for (int d = 2 * seam::lane(); d < p.dim_v; d += 64) {
        float x[2] = {};
        ATTN_UNROLL
        for (int w = 0; w < kWarps; ++w) {
          x[0] += share[w] * found.out[w][r][d];
          x[1] += share[w] * found.out[w][r][d + 1];
        }
        if (!partial) {
          store_pair(out, d, p.dim_v, pairs, x[0] * factor, x[1] * factor);
        } else {
          to[d] = x[0] * factor;
          if (d + 1 < p.dim_v) to[d + 1] = x[1] * factor;
        }
      }
    }
  }

  ATTN_DEVICE static void run(const Params& params, Shared& shared) {
    const AttendParams& p = params.attend;
    if (seam::thread() == 0) shared.open = DecodeGrid::open(p, seam::block_x(), seam::block_y(), shared.item);
    seam::sync_block();
    if (!shared.open) return;
    const RowItem& item = shared.item;
    load_queries<kThreads>(p, item, shared.q);  // part of the first group of copies
    for (int64_t split = seam::block_z(); split < params.splits; split += params.blocks) {
      State state;
      state.clear();
      attend(p, item, key_split(p, item.group, params.splits, split), shared, state);
      seam::sync_block();
      store_found(state, shared.found);
      seam::sync_block();
      finish(params, item, split, shared.found);  // the next part has a barrier before it loads there
    }
  }
};

}  // namespace attn::cuda
