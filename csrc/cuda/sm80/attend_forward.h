// Attention forward on tensor cores from sm_80 on, fp32 accumulation. A block takes 128 query rows, a warp 16 of them.
// Key tiles of 64 pass through shared memory one at a time, two barriers each: one before the copies (the tile before
// is done with), one after. While they fly, warp 0 walks the schedule for the tile after. Of float32 it is half of
// each, rows and keys, in the same memory.
//
// Shared memory, of a block: 2 kDim (128 + 2 * 64) bytes and 6 KiB for what masking needs: 38, 70 and 134 KiB. kDim =
// 256 is more than sm_86 and sm_89 have.
#pragma once

#include "cuda/sm80/key_walk.h"

namespace attn::cuda {

constexpr int kBlockRows = 128;
using AttendGrid = RowGrid<kBlockRows>;

// kDim: 64, 128 or 256, at least the features of q, k and v. kBarrier: of its threads, where a block has more.
template <class T, int kDim, int kBarrier = 0> struct AttendForward {
  static constexpr int kKeys = kTileKeysOf<T>, kRows = kBlockRows * kKeys / kTileKeys;
  static constexpr int kWarps = kRows / kWarpRows, kThreads = 32 * kWarps;
  using Items = RowGrid<kRows>;
  using Tile = KeyTile<kKeys>;
  // Keys of which a warp has the scores at once: what registers allow.
  static constexpr int kWarpKeys = Products<T>::kSplit && kDim == 256 ? 16 : kKeys;
  using Warp = WarpAttend<T, kDim, kWarpKeys>;
  using State = typename Warp::State;
  using Params = AttendParams;
  struct Shared {
    SharedRows<T, kDim, kRows> q;
    SharedRows<T, kDim, kKeys> k, v;
    Tile tile[2];
    int32_t found[kWarps];  // what a warp answers to a question put to the block
    RowItem item;
    bool open;
  };

  static Grid grid(const Params& p) { return Items::grid(p); }

  // Is there a row whose gate is not 0?
  ATTN_DEVICE static bool gated_on(const Params& p, const RowItem& item, Shared& shared) {
    const int r = seam::thread();
    return block_any(r < item.rows && row_gate(p, item, r) != 0, shared.found);
  }

  ATTN_DEVICE static void finish(const Params& p, const RowItem& item, State& state) {
    const bool pairs = stores_pairs<T>(p.out);
    state.add_up();
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int32_t r = Warp::row_of(seam::warp() * kWarpRows, i);
      if (r >= item.rows) continue;
      float factor, lse;
      finish_row_of(p, item, r, state.top[i], state.sum[i], true, factor, lse);
      if (seam::lane() % 4 == 0) static_cast<float*>(p.lse)[lse_index(p, item, r)] = lse;
      T* out = out_row<T>(p, item, r);
      ATTN_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        store_pair(out, 8 * n + 2 * (seam::lane() % 4), p.dim_v, pairs, state.out[n][2 * i] * factor,
                   state.out[n][2 * i + 1] * factor);
      }
    }
  }

  ATTN_DEVICE static void attend(const Params& p, const RowItem& item, Shared& shared, State& state) {
    const bool segments = p.segment_k.data;
    const int32_t first = seam::warp() * kWarpRows;
    const bool idle = first >= item.rows;  // the warp has no rows, but copies and waits with the others
    RowsReach reach = RowsReach::of(p, item, idle ? 0 : first, min_i32(first + kWarpRows, item.rows));
    typename Warp::Row rows[2];
    Warp::load_rows(p, item, first, rows, reach);
    for_each_key_tile<kThreads, kBarrier>(p, item, shared, shared.v, [&](const Tile& t, bool scanned) {
      if (idle || reach.sees_none(t, segments)) return;
      const bool masked = !reach.sees_all(t, segments), found = scanned && any_found(shared.found);
      ATTN_ROLLED
      for (int key = 0; key < kKeys; key += kWarpKeys) {
        typename Warp::Scores s;
        Warp::multiply_keys(shared.q, first, shared.k, key, s);
        Warp::modify(p, t, key, rows, masked, s);
        Warp::softmax(s, state);
        if (found) Warp::multiply_values_not_finite(shared.v, key, s, state);
        else Warp::multiply_values(shared.v, key, s, state);
      }
    });
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    if (seam::thread() == 0) shared.open = Items::open(p, seam::block_x(), seam::block_y(), shared.item);
    seam::sync_block();
    if (!shared.open) return;
    const RowItem& item = shared.item;
    State state;
    state.clear();
    if (!p.skip_gated || !p.head_gate.data || gated_on(p, item, shared)) {
      load_queries<kThreads>(p, item, shared.q);  // part of the first tile's group of copies
      attend(p, item, shared, state);
    }
    finish(p, item, state);
  }
};

}  // namespace attn::cuda
