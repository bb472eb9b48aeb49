// How a producer warp feeds the row tiles that look at a block of 128 keys to two warpgroups, each of which has one
// piece of 64 keys: q and dout through TMA, and what the scores need of each row.
#pragma once

#include "cuda/sm80/score_gradients.h"
#include "cuda/sm90/key_feed.h"

namespace attn::cuda {

constexpr int kTileRows = 64, kRowStages = 3, kScanned = 32;

struct RowTile {
  int64_t word[kTilePieces];  // a piece's word of row 0 in LayoutView::bits, or -1
  int32_t rows;               // 0: no tile, and none that follows
  int32_t pieces;             // a bit for each that some row looks at
  int32_t last_lo, first_hi;  // every row sees the keys between by position
};

// Rows of a tile; those past its last have weights of 0.
struct TileRows {
  float lse2[kTileRows], delta[kTileRows], gate[kTileRows];
  int32_t lo[kTileRows], hi[kTileRows];
  int32_t words[kTileRows];  // offset of a row's words from those of row 0

  ATTN_DEVICE RowGradient gradient(int r) const { return {lse2[r], delta[r], gate[r]}; }
};

// The producer's way along the row tiles of each head in turn: in shared memory, as it has few registers.
struct Walk {
  RowTiling tiling;
  int32_t tiles, heads;  // of a head; that read the keys
  int32_t base, head;    // the next tiles to look at

  ATTN_DEVICE void next() {
    base += kScanned;
    if (base < tiles) return;
    base = 0;
    ++head;
  }
};

template <class T, int kDim> struct RowFeed {
  using Keys = Panels<T, kDim, kGroupKeys>;
  using Rows = Panels<T, kDim, kTileRows>;
  using Turn = StageTurn<kRowStages>;

  struct Tiles {
    Keys k, v;
    Rows q[kRowStages], dout[kRowStages];
  };
  struct State {
    seam::Barrier keys_full, full[kRowStages], empty[kRowStages];
    RowTile tile[kRowStages];
    TileRows row[kRowStages];
    // The producer's own: where it is, and row tiles that it has looked at, one a lane.
    Walk walk;
    RowItem item[kScanned];
    RowTile scanned[kScanned];
  };

  // One thread. `warps` will release each tile.
  ATTN_DEVICE static void init(State& state, int warps) {
    seam::init_barrier(state.keys_full, 1);
    for (int i = 0; i < kRowStages; ++i) {
      seam::init_barrier(state.full[i], 1);
      seam::init_barrier(state.empty[i], warps);
    }
    seam::publish_barriers();
  }

  // Do rows of the item look at the keys? Then fills `t`.
  ATTN_DEVICE static bool look(const AttendParams& p, const KeyItem& keys, const RowItem& item, RowTile& t) {
    t.rows = item.rows;
    t.pieces = 0;
    t.word[0] = t.word[1] = -1;
    visit_pieces(p, item.group, keys.begin, keys.end, [&](const Span& s) {
      for (int h = 0; h < kTilePieces; ++h) {
        const int32_t start = keys.begin + kPieceKeys * h;
        if (s.end <= start || s.begin >= start + kPieceKeys) continue;
        t.word[h] = word_of_key(p.layout, s, start);
        t.pieces |= 1 << h;
      }
      return true;
    });
    const RowsReach reach = RowsReach::of(p, item, 0, item.rows);
    t.last_lo = reach.last.lo;
    t.first_hi = min_i32(reach.first.hi, keys_end(p, item.group) - 1);
    return t.pieces != 0;
  }

  // One warp: a row tile, once there is room for it.
  ATTN_DEVICE static void send(const BackwardParams& b, const seam::TensorMap& q, const seam::TensorMap& dout,
                               const RowItem& item, const RowTile& t, State& state, Tiles& tiles, Turn& turn) {
    const AttendParams& p = b.forward;
    const int i = turn.stage;
    RowGradient gradient[2];
    ATTN_UNROLL
    for (int j = 0; j < 2; ++j) gradient[j] = row_gradient(b, item, seam::lane() + 32 * j);  // in flight while it waits
    seam::wait_barrier(state.empty[i], turn.parity ^ 1);
    TileRows& to = state.row[i];
    const int32_t end = keys_end(p, item.group);
    ATTN_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int32_t r = seam::lane() + 32 * j;
      const auto row = WarpAttend<T, kDim, 16>::row(p, item, min_i32(r, item.rows - 1));
      to.lse2[r] = gradient[j].lse2;
      to.delta[r] = gradient[j].delta;
      to.gate[r] = gradient[j].gate;
      to.lo[r] = row.window.lo;
      to.hi[r] = min_i32(row.window.hi, end - 1);
      to.words[r] = row.words;
    }
    if (seam::lane() == 0) state.tile[i] = t;
    seam::arrive_warp_expecting(state.full[i], 2 * sizeof(Rows));
    if (seam::lane() == 0) {
      const int64_t token = item.seq.q_token + item.group.q_begin;
      fetch_rows(q, token, item.group.head, item.seq.batch, 0, state.full[i], tiles.q[i]);
      fetch_rows(dout, token, item.group.head, item.seq.batch, 0, state.full[i], tiles.dout[i]);
    }
    turn.next();
  }

  // One warp: the keys, and all row tiles that look at them, in order.
  template <class Params>
  ATTN_DEVICE static void produce(const Params& all, const KeyItem& keys, State& state, Tiles& tiles) {
    const BackwardParams& b = all.backward;
    const AttendParams& p = b.forward;
    const int lane = seam::lane();
    seam::arrive_warp_expecting(state.keys_full, 2 * sizeof(Keys));
    for (int h = 0; h < kTilePieces && lane == 0; ++h) {
      const int64_t token = keys.seq.k_token + keys.begin + kPieceKeys * h;
      fetch_rows(all.k, token, keys.head_kv, keys.seq.batch, kPieceKeys * h, state.keys_full, tiles.k);
      fetch_rows(all.v, token, keys.head_kv, keys.seq.batch, kPieceKeys * h, state.keys_full, tiles.v);
    }
    Walk& walk = state.walk;
    if (lane == 0) {
      const RowTiling tiling = row_tiling(p, keys.seq.queries, keys.seq.keys, kTileRows);
      walk.tiling = tiling;
      walk.tiles = static_cast<int32_t>(row_tile_count(tiling, keys.seq.queries));
      walk.heads = static_cast<int32_t>(p.heads / p.heads_kv);
      walk.head = walk.base = 0;
    }
    seam::sync_warp();
    Turn turn;
    while (walk.base < walk.tiles && walk.head < walk.heads) {
      RowItem& item = state.item[lane];
      const bool mine =
          walk.base + lane < walk.tiles &&
          open_row_tile(p, keys.seq, walk.tiling, walk.base + lane, keys.head_kv * walk.heads + walk.head, 1, item) &&
          look(p, keys, item, state.scanned[lane]);
      uint32_t left = seam::ballot(mine);
      seam::sync_warp();
      if (lane == 0) walk.next();
      for (; left; left &= left - 1) {
        const uint32_t i = seam::popcount((left & (0 - left)) - 1);  // the lowest bit's number
        send(b, all.q, all.dout, state.item[i], state.scanned[i], state, tiles, turn);
      }
      seam::sync_warp();
    }
    seam::wait_barrier(state.empty[turn.stage], turn.parity ^ 1);
    if (lane == 0) state.tile[turn.stage].rows = 0;
    seam::arrive_warp(state.full[turn.stage]);
  }

  // Is there a tile, and does some row of it look at the piece?
  ATTN_DEVICE static bool sees(State& state, int piece, const Turn& turn) {
    seam::wait_barrier(state.full[turn.stage], turn.parity);
    const RowTile& t = state.tile[turn.stage];
    return t.rows > 0 && (t.pieces >> piece & 1);
  }
  // A warpgroup's next tile that looks at its piece, from `turn` on; false where there is none. Others it releases.
  ATTN_DEVICE static bool next(State& state, int piece, Turn& turn) {
    for (;; turn.next()) {
      if (sees(state, piece, turn)) return true;
      if (state.tile[turn.stage].rows == 0) return false;
      seam::arrive_warp(state.empty[turn.stage]);
    }
  }
};

}  // namespace attn::cuda
