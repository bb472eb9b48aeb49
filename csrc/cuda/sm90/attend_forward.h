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
#include "cuda/sm90/key_feed.h"

namespace attn::cuda {

struct AttendGroupsParams {
  AttendParams attend;
  seam::TensorMap k, v;  // boxes of kPieceKeys tokens
};

// kDim: 64 or 128, the features of q, k and v.
template <class T, int kDim> struct AttendGroups {
  static constexpr int kThreads = kFedThreads;
  // Of 65536 an SM has; the producer's warpgroup needs few.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(moves_registers(kConsumerRegisters, kProducerRegisters));
  static constexpr int kTurn = kAllConsumers + 1;  // named barrier of a warpgroup's turn: kTurn + its number
  using Group = GroupAttend<T, kDim>;
  using State = typename Group::State;
  using Careful = AttendForward<T, kDim, kAllConsumers>;
  static_assert(Careful::kThreads == kConsumers && 2 * kGroupRows == kBlockRows);
  using Params = AttendGroupsParams;

  struct Shared {
    union {
      struct {
        typename Group::Queries q;
        typename Group::Keys k[kFeedStages], v[kFeedStages];
      };
      typename Careful::Shared careful;
    };
    KeyFeed feed;
    int32_t found[kConsumers / 32];
    RowItem item;
    bool open;
  };

  static Grid grid(const Params& p) { return AttendGrid::grid(p.attend); }

  // A warpgroup starts products when it has its turn.
  ATTN_DEVICE static void wait_turn(int groups, int group) {
    if (groups == 2) seam::sync_named(kTurn + group, kConsumers);
  }
  ATTN_DEVICE static void pass_turn(int groups, int group) {
    if (groups == 2) seam::arrive_named(kTurn + 1 - group, kConsumers);
  }

  // One warpgroup.
  ATTN_DEVICE static void consume(const Params& p, Shared& shared, int group, State& state) {
    const RowItem& item = shared.item;
    KeyFeed& feed = shared.feed;
    const int32_t first = group * kGroupRows;
    const int groups = groups_with_rows(item);
    Group rows;
    rows.open(p.attend, item, first);
    typename Group::Scores s;
    typename Group::Weights weights;
    float alpha[2];
    StageTurn<kFeedStages> now, before;
    seam::wait_barrier(feed.k_full[0], 0);
    PieceTile t = feed.tile[0];
    if (t.start[0] < 0) return;
    if (group == 1) seam::arrive_named(kTurn, kConsumers);
    wait_turn(groups, group);
    Group::start_products(shared.q, first, shared.k[0], s);
    pass_turn(groups, group);
    seam::group_wait<0>(s);
    seam::arrive_warp(feed.k_empty[0]);
    if (!rows.sees_all(t)) rows.mask(p.attend, t, s);
    rows.softmax(s, state, alpha);
    Group::take_weights(s, weights);
    for (now.next();; before = now, now.next()) {
      seam::wait_barrier(feed.k_full[now.stage], now.parity);
      t = feed.tile[now.stage];
      if (t.start[0] < 0) break;
      wait_turn(groups, group);
      Group::start_products(shared.q, first, shared.k[now.stage], s);
      seam::wait_barrier(feed.v_full[before.stage], before.parity);
      Group::start_values(weights, shared.v[before.stage], state.out);
      pass_turn(groups, group);
      seam::group_wait<1>(s);
      seam::arrive_warp(feed.k_empty[now.stage]);
      if (!rows.sees_all(t)) rows.mask(p.attend, t, s);
      rows.softmax(s, state, alpha);
      seam::group_wait<0>(state.out);
      seam::arrive_warp(feed.v_empty[before.stage]);
      Group::multiply(state, alpha);
      Group::take_weights(s, weights);
    }
    // The last turn was passed on to a warpgroup that doesn't wait for it.
    if (group == 0) wait_turn(groups, group);
    seam::wait_barrier(feed.v_full[before.stage], before.parity);
    Group::start_values(weights, shared.v[before.stage], state.out);
    seam::group_wait<0>(state.out);
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) state.top[i] *= rows.scale;
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    if (seam::thread() == 0) {
      shared.open = AttendGrid::open(p.attend, seam::block_x(), seam::block_y(), shared.item);
      if (shared.open) shared.feed.init(4 * groups_with_rows(shared.item));
    }
    seam::sync_block();
    if (!shared.open) return;
    const RowItem& item = shared.item;
    const int group = seam::warp() / 4;
    if (group == 2) {
      seam::fewer_registers<kProducerRegisters>();
      if (seam::warp() == kConsumers / 32) shared.feed.produce(p.attend, item, p.k, p.v, shared.k, shared.v);
      return;
    }
    seam::more_registers<kConsumerRegisters>();
    load_panels<kConsumers>(p.attend.q, item, shared.q);
    publish_copies<kConsumers, kAllConsumers>();
    State state;
    state.clear();
    if (group < groups_with_rows(item)) consume(p, shared, group, state);
    if (block_any<kAllConsumers>(!all_finite(state.out), shared.found)) {
      state.clear();
      cuda::load_queries<kConsumers>(p.attend, item, shared.careful.q);
      Careful::attend(p.attend, item, shared.careful, state);
    }
    Careful::finish(p.attend, item, state);
  }
};

}  // namespace attn::cuda
