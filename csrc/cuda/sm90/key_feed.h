// How a producer warp feeds the key tiles of a block's rows to warpgroups: a pipeline of two stages of keys and two of
// values.
#pragma once

#include "cuda/sm90/group_attend.h"

namespace attn::cuda {

// A block that is fed: two warpgroups that consume, and the producer's.
constexpr int kConsumers = 2 * 128, kFedThreads = kConsumers + 128;
constexpr int kAllConsumers = 1;  // named barrier
constexpr int kFeedStages = 2;

// May two warpgroups have `consumers` registers a thread and one `producers`? Together as many as a block of three
// starts with, of which ptxas gives each thread 168; more would be waited for in vain.
constexpr bool moves_registers(int consumers, int producers) { return 2 * consumers + producers <= 3 * 168; }

// Stage and parity of the n-th use of a buffer.
template <int kStages> struct StageTurn {
  int stage = 0, parity = 0;
  ATTN_DEVICE void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// One thread: the rows of a box, from row `row` of the panels on.
template <class Tile>
ATTN_DEVICE void fetch_rows(const seam::TensorMap& map, int64_t token, int64_t head, int64_t batch, int row,
                            seam::Barrier& full, Tile& to) {
  ATTN_UNROLL
  for (int d = 0; d < Tile::kCount; ++d) {
    seam::load_box(to.panel[d].chunk + 8 * row, map, full, seam::kPanelElements * d, static_cast<int>(token),
                   static_cast<int>(head), static_cast<int>(batch));
  }
}

// One thread: both pieces of a tile, zeros for one that isn't there.
template <class Keys>
ATTN_DEVICE void fetch_keys(const AttendParams& p, const RowItem& item, const seam::TensorMap& map, const PieceTile& t,
                            seam::Barrier& full, Keys& to) {
  for (int h = 0; h < kTilePieces; ++h) {
    const int64_t token = t.start[h] < 0 ? p.tk : item.seq.k_token + t.start[h];
    fetch_rows(map, token, item.group.head_kv, item.seq.batch, kPieceKeys * h, full, to);
  }
}

struct KeyFeed {
  seam::Barrier k_full[kFeedStages], v_full[kFeedStages], k_empty[kFeedStages], v_empty[kFeedStages];
  PieceTile tile[kFeedStages];

  // One thread. `warps` will release each tile.
  ATTN_DEVICE void init(int warps) {
    for (int i = 0; i < kFeedStages; ++i) {
      seam::init_barrier(k_full[i], 1);
      seam::init_barrier(v_full[i], 1);
      seam::init_barrier(k_empty[i], warps);
      seam::init_barrier(v_empty[i], warps);
    }
    seam::publish_barriers();
  }

  // One warp. A tile without a first piece ends the feed; it has no values, and nobody releases it.
  template <class Keys>
  ATTN_DEVICE void produce(const AttendParams& p, const RowItem& item, const seam::TensorMap& k_map,
                           const seam::TensorMap& v_map, Keys (&k)[kFeedStages], Keys (&v)[kFeedStages]) {
    const bool first = seam::lane() == 0;
    constexpr int kBytes = sizeof(Keys);
    StageTurn<kFeedStages> turn;
    for_each_piece_tile(p, item.group, [&](const PieceTile& t) {
      const bool last = t.start[0] < 0;
      const int i = turn.stage;
      seam::wait_barrier(k_empty[i], turn.parity ^ 1);
      if (first) tile[i] = t;
      seam::arrive_warp_expecting(k_full[i], last ? 0 : kBytes);
      if (last) return;
      if (first) fetch_keys(p, item, k_map, t, k_full[i], k[i]);
      seam::wait_barrier(v_empty[i], turn.parity ^ 1);
      seam::arrive_warp_expecting(v_full[i], kBytes);
      if (first) fetch_keys(p, item, v_map, t, v_full[i], v[i]);
      turn.next();
    });
  }
};

}  // namespace attn::cuda
