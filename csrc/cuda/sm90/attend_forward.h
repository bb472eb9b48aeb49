// Attention forward for bf16 and f16 on sm_90a: what sm90/serves.h says, everything else is sm80/attend_forward.h's. A
// block takes the same 128 query rows. A producer warp walks the schedule and fetches key tiles of 128 with TMA, two
// stages of K and of V ahead; two warpgroups take 64 rows each. Of a warpgroup, the values of one tile are multiplied
// while the softmax of the next one runs, and the two take turns in starting products, so that one's softmax hides
// behind the other's products (FlashAttention-3, Shah et al. 2024, arXiv:2407.08608).
//
// A key that a mask hides has the weight 0, and 0 times NaN or infinity is NaN. So where a result isn't finite, the
// block does its rows again as sm_80 does, which looks at the values before it multiplies them.
//
// Shared memory, of a block: kDim (2 * 128 + 4 * 256) bytes and 1 KiB: 81 and 161 KiB.
#pragma once

#include "cuda/sm80/attend_forward.h"
#include "cuda/sm90/group_attend.h"

namespace attn::cuda {

struct AttendGroupsParams {
  AttendParams attend;
  seam::TensorMap k, v;  // boxes of kPieceKeys tokens
};

// kDim: 64 or 128, the features of q, k and v.
template <class T, int kDim> struct AttendGroups {
  static constexpr int kGroups = 2, kConsumers = kGroups * 128, kThreads = kConsumers + 128, kStages = 2;
  // Of 65536 an SM has; the producer's warpgroup needs few.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kAllConsumers = 1, kTurn = 2;  // named barriers; of a warpgroup's turn, kTurn + its number
  using Group = GroupAttend<T, kDim>;
  using State = typename Group::State;
  using Careful = AttendForward<T, kDim, kAllConsumers>;
  static_assert(Careful::kThreads == kConsumers && kGroups * kGroupRows == kBlockRows);
  using Params = AttendGroupsParams;

  struct Shared {
    union {
      struct {
        typename Group::Queries q;
        typename Group::Keys k[kStages], v[kStages];
      };
      typename Careful::Shared careful;
    };
    seam::Barrier k_full[kStages], v_full[kStages], k_empty[kStages], v_empty[kStages];
    PieceTile tile[kStages];
    int32_t found[kConsumers / 32];
    RowItem item;
    bool open;
  };

  static Grid grid(const Params& p) { return AttendGrid::grid(p.attend); }

  // Stage and parity of the n-th use of a buffer.
  struct Turn {
    int stage = 0, parity = 0;
    ATTN_DEVICE void next() {
      if (++stage < kStages) return;
      stage = 0;
      parity ^= 1;
    }
  };

  ATTN_DEVICE static int groups_with_rows(const RowItem& item) { return item.rows > kGroupRows ? 2 : 1; }

  // One thread.
  ATTN_DEVICE static void init_barriers(Shared& shared) {
    const int warps = 4 * groups_with_rows(shared.item);
    for (int i = 0; i < kStages; ++i) {
      seam::init_barrier(shared.k_full[i], 1);
      seam::init_barrier(shared.v_full[i], 1);
      seam::init_barrier(shared.k_empty[i], warps);
      seam::init_barrier(shared.v_empty[i], warps);
    }
    seam::publish_barriers();
  }

  // One thread: both pieces of a tile, zeros for one that isn't there.
  ATTN_DEVICE static void fetch(const AttendParams& p, const RowItem& item, const seam::TensorMap& map,
                                const PieceTile& t, seam::Barrier& full, typename Group::Keys& to) {
    for (int h = 0; h < kTilePieces; ++h) {
      const int64_t token = t.start[h] < 0 ? p.tk : item.seq.k_token + t.start[h];
      ATTN_UNROLL
      for (int d = 0; d < Group::Keys::kCount; ++d) {
        seam::load_box(to.panel[d].chunk + 8 * kPieceKeys * h, map, full, seam::kPanelElements * d,
                       static_cast<int>(token), static_cast<int>(item.group.head_kv), static_cast<int>(item.seq.batch));
      }
    }
  }

  // One warp.
  ATTN_DEVICE static void produce(const Params& p, Shared& shared) {
    const RowItem& item = shared.item;
    const bool first = seam::lane() == 0;
    constexpr int kBytes = sizeof(typename Group::Keys);
    Turn turn;
    for_each_piece_tile(p.attend, item.group, [&](const PieceTile& t) {
      const bool last = t.start[0] < 0;
      const int i = turn.stage;
      seam::wait_barrier(shared.k_empty[i], turn.parity ^ 1);
      if (first) shared.tile[i] = t;
      seam::arrive_warp_expecting(shared.k_full[i], last ? 0 : kBytes);
      if (last) return;
      if (first) fetch(p.attend, item, p.k, t, shared.k_full[i], shared.k[i]);
      seam::wait_barrier(shared.v_empty[i], turn.parity ^ 1);
      seam::arrive_warp_expecting(shared.v_full[i], kBytes);
      if (first) fetch(p.attend, item, p.v, t, shared.v_full[i], shared.v[i]);
      turn.next();
    });
  }

  // A warpgroup starts products when it has its turn.
  ATTN_DEVICE static void wait_turn(int groups, int group) {
    if (groups == kGroups) seam::sync_named(kTurn + group, kConsumers);
  }
  ATTN_DEVICE static void pass_turn(int groups, int group) {
    if (groups == kGroups) seam::arrive_named(kTurn + 1 - group, kConsumers);
  }

  // One warpgroup.
  ATTN_DEVICE static void consume(const Params& p, Shared& shared, int group, State& state) {
    const RowItem& item = shared.item;
    const int32_t first = group * kGroupRows;
    const int groups = groups_with_rows(item);
    Group rows;
    rows.open(p.attend, item, first);
    typename Group::Scores s;
    typename Group::Weights weights;
    float alpha[2];
    Turn now, before;
    seam::wait_barrier(shared.k_full[0], 0);
    PieceTile t = shared.tile[0];
    if (t.start[0] < 0) return;
    if (group == 1) seam::arrive_named(kTurn, kConsumers);
    wait_turn(groups, group);
    Group::start_products(shared.q, first, shared.k[0], s);
    pass_turn(groups, group);
    seam::group_wait<0>(s);
    seam::arrive_warp(shared.k_empty[0]);
    if (!rows.sees_all(t)) rows.mask(p.attend, t, s);
    rows.softmax(s, state, alpha);
    Group::take_weights(s, weights);
    for (now.next();; before = now, now.next()) {
      seam::wait_barrier(shared.k_full[now.stage], now.parity);
      t = shared.tile[now.stage];
      if (t.start[0] < 0) break;
      wait_turn(groups, group);
      Group::start_products(shared.q, first, shared.k[now.stage], s);
      seam::wait_barrier(shared.v_full[before.stage], before.parity);
      Group::start_values(weights, shared.v[before.stage], state);
      pass_turn(groups, group);
      seam::group_wait<1>(s);
      seam::arrive_warp(shared.k_empty[now.stage]);
      if (!rows.sees_all(t)) rows.mask(p.attend, t, s);
      rows.softmax(s, state, alpha);
      seam::group_wait<0>(state.out);
      seam::arrive_warp(shared.v_empty[before.stage]);
      Group::multiply(state, alpha);
      Group::take_weights(s, weights);
    }
    // The last turn was passed on to a warpgroup that doesn't wait for it.
    if (group == 0) wait_turn(groups, group);
    seam::wait_barrier(shared.v_full[before.stage], before.parity);
    Group::start_values(weights, shared.v[before.stage], state);
    seam::group_wait<0>(state.out);
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) state.top[i] *= rows.scale;
  }

  ATTN_DEVICE static void load_queries(const AttendParams& p, const RowItem& item, typename Group::Queries& q) {
    const bool aligned = rows_aligned<T>(p.q);
    ATTN_UNROLL
    for (int d = 0; d < Group::Queries::kCount; ++d) {
      const T* from = static_cast<const T*>(p.q.data) + item.seq.batch * p.q.batch + seam::kPanelElements * d;
      q.panel[d].template load<kConsumers>(from, seam::kPanelElements, aligned,
                                           [&](int r) { return r < item.rows ? row_offset(p.q, item, r) : -1; });
    }
    seam::copy_commit();
    seam::copy_wait<0>();
    seam::publish_shared();
    seam::sync_named(kAllConsumers, kConsumers);
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    if (seam::thread() == 0) {
      shared.open = AttendGrid::open(p.attend, seam::block_x(), seam::block_y(), shared.item);
      if (shared.open) init_barriers(shared);
    }
    seam::sync_block();
    if (!shared.open) return;
    const RowItem& item = shared.item;
    const int group = seam::warp() / 4;
    if (group == kGroups) {
      seam::fewer_registers<kProducerRegisters>();
      if (seam::warp() == kConsumers / 32) produce(p, shared);
      return;
    }
    seam::more_registers<kConsumerRegisters>();
    load_queries(p.attend, item, shared.q);
    State state;
    state.clear();
    if (group < groups_with_rows(item)) consume(p, shared, group, state);
    if (block_any<kAllConsumers>(!Group::finite(state), shared.found)) {
      state.clear();
      cuda::load_queries<kConsumers>(p.attend, item, shared.careful.q);
      Careful::attend(p.attend, item, shared.careful, state);
    }
    Careful::finish(p.attend, item, state);
  }
};

}  // namespace attn::cuda
