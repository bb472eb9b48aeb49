// dQ and the gradient of the gate for bf16 and f16 on sm_90a. Like the forward: a block takes 128 query rows, a
// producer warp feeds key tiles of 128 through TMA, and two warpgroups take 64 rows each. Products of the next tile
// start before that of this one is over; two warpgroups that go on by themselves fill each other's gaps.
//
// Queries and keys each sum their own gradients, with 3 and 4 products of their scores; one kernel for both would need
// 5. But then dQ is added up in memory, in fp32 and by many blocks: without atomics, in an order, 2 KiB of traffic to
// L2 for a row of 128 features and 128 keys. That takes an SM's share of L2 (some 40 bytes/ns on an H100) 3.1 us for
// 128 rows, where the products of 5 need 2.8 us and those of 7 need 3.9: at best a fifth less time, and only while no
// block waits for its turn.
//
// Shared memory, of a block: kDim (4 * 128 + 4 * 256) bytes and 1 KiB: 97 and 193 KiB.
#pragma once

#include "cuda/sm80/query_gradients.h"
#include "cuda/sm90/key_feed.h"

namespace attn::cuda {

struct GroupGradientsParams {
  BackwardParams backward;
  seam::TensorMap q, dout;  // boxes of kTileRows tokens
  seam::TensorMap k, v;     // boxes of kPieceKeys tokens
};

template <class T, int kDim> struct QueryGroups {
  static constexpr int kThreads = kFedThreads, kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(moves_registers(kConsumerRegisters, kProducerRegisters));
  static constexpr int kBlockRows = 2 * kGroupRows;
  using Items = RowGrid<kBlockRows>;
  using Group = GroupAttend<T, kDim>;
  using Scores = typename Group::Scores;
  // What isn't finite is computed again: see attend_forward.h.
  using Careful = QueryGradients<T, kDim, kBlockRows, kAllConsumers>;
  static_assert(Careful::kThreads == kConsumers);
  using Sums = typename Careful::Sums;
  using Params = GroupGradientsParams;

  struct Shared {
    union {
      struct {
        typename Group::Queries q, dout;
        typename Group::Keys k[kFeedStages], v[kFeedStages];
      };
      typename Careful::Shared careful;
    };
    KeyFeed feed;
    int32_t found[kConsumers / 32];
    RowItem item;
    bool open;
  };

  static Grid grid(const Params& p) { return p.backward.dq.data ? Items::grid(p.backward.forward) : Grid{0}; }

  // Products -> weights.
  ATTN_DEVICE static void weigh(float scale, const RowGradient (&gradient)[2], Scores& s) {
    ATTN_UNROLL
    for (int n = 0; n < kGroupKeys / 8; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) s[n][e] = score_weight(s[n][e] * scale, gradient[e / 2]);
    }
  }
  // Weights -> gradients of logits. g: <dout, v>.
  ATTN_DEVICE static void differentiate(const RowGradient (&gradient)[2], const Scores& g, Scores& s) {
    ATTN_UNROLL
    for (int n = 0; n < kGroupKeys / 8; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) s[n][e] = logit_gradient(s[n][e], g[n][e], gradient[e / 2]);
    }
  }
  ATTN_DEVICE static void sum_gate(const Scores& weight, const Scores& g, float (&gate)[2]) {
    ATTN_UNROLL
    for (int n = 0; n < kGroupKeys / 8; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) gate[e / 2] += weight[n][e] * g[n][e];
    }
  }

  // One warpgroup.
  ATTN_DEVICE static void consume(const Params& p, Shared& shared, int group, Sums& sums) {
    const AttendParams& a = p.backward.forward;
    const RowItem& item = shared.item;
    KeyFeed& feed = shared.feed;
    const int32_t first = group * kGroupRows, mine = first + seam::warp() % 4 * kWarpRows;
    Group rows;
    rows.open(a, item, first);
    RowGradient gradient[2];
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) gradient[i] = row_gradient(p.backward, item, Group::Warp::row_of(mine, i));
    Scores s, g;
    typename Group::Weights weights;
    StageTurn<kFeedStages> now, before;
    seam::wait_barrier(feed.k_full[0], 0);
    if (feed.tile[0].start[0] < 0) return;
    Group::start_products(shared.q, first, shared.k[0], s);
    seam::wait_barrier(feed.v_full[0], 0);
    Group::start_products(shared.dout, first, shared.v[0], g);
    for (;;) {
      seam::group_wait<1>(s);
      const PieceTile& t = feed.tile[now.stage];
      if (!rows.sees_all(t)) rows.mask(a, t, s);
      weigh(rows.scale, gradient, s);
      seam::group_wait<0>(g);
      seam::arrive_warp(feed.v_empty[now.stage]);
      if (p.backward.dhead_gate) sum_gate(s, g, sums.gate);
      differentiate(gradient, g, s);
      Group::take_weights(s, weights);
      Group::start_values(weights, shared.k[now.stage], sums.dq);
      before = now;
      now.next();
      seam::wait_barrier(feed.k_full[now.stage], now.parity);
      if (feed.tile[now.stage].start[0] < 0) break;
      Group::start_products(shared.q, first, shared.k[now.stage], s);
      seam::group_wait<1>(sums.dq);
      seam::arrive_warp(feed.k_empty[before.stage]);
      seam::wait_barrier(feed.v_full[now.stage], now.parity);
      Group::start_products(shared.dout, first, shared.v[now.stage], g);
    }
    seam::group_wait<0>(sums.dq);
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const AttendParams& a = p.backward.forward;
    if (seam::thread() == 0) {
      shared.open = Items::open(a, seam::block_x(), seam::block_y(), shared.item);
      if (shared.open) shared.feed.init(4 * groups_with_rows(shared.item));
    }
    seam::sync_block();
    if (!shared.open) return;
    const RowItem& item = shared.item;
    const int group = seam::warp() / 4;
    if (group == 2) {
      seam::fewer_registers<kProducerRegisters>();
      if (seam::warp() == kConsumers / 32) shared.feed.produce(a, item, p.k, p.v, shared.k, shared.v);
      return;
    }
    seam::more_registers<kConsumerRegisters>();
    load_panels<kConsumers>(a.q, item, shared.q);
    load_panels<kConsumers>(p.backward.dout, item, shared.dout);
    publish_copies<kConsumers, kAllConsumers>();
    Sums sums;
    sums.clear();
    if (group < groups_with_rows(item)) consume(p, shared, group, sums);
    const bool finite = all_finite(sums.dq) && std::fabs(sums.gate[0] + sums.gate[1]) < INFINITY;
    if (block_any<kAllConsumers>(!finite, shared.found)) Careful::sum_rows(p.backward, item, shared.careful);
    else Careful::finish(p.backward, item, sums);
  }
};

}  // namespace attn::cuda
