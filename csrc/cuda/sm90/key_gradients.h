// dK and dV for bf16 and f16 on sm_90a. A block takes 128 neighbouring keys of a kv head, a warpgroup 64 of them; a
// producer warp feeds tiles of 64 rows through TMA, three stages ahead (row_feed.h). As in sm80/key_gradients.h, all is
// the forward's turned around: scores have a row for each key, and lie in registers as operand A of dV += P^T dout and
// dK += dS^T q, whose operands B are the rows as they came. So sums stay in registers, in an order of their own.
//
// Two warpgroups that go on by themselves fill each other's gaps; the next tile's first product starts behind dK's.
//
// Shared memory, of a block: kDim (4 * 128 + 12 * 64) bytes and 10 KiB: 90 and 170 KiB.
#pragma once

#include "cuda/sm80/key_gradients.h"
#include "cuda/sm90/query_gradients.h"
#include "cuda/sm90/row_feed.h"

namespace attn::cuda {

template <class T, int kDim> struct KeyGroups {
  static constexpr int kThreads = kFedThreads;
  static constexpr int kProducerRegisters = kDim == 64 ? 88 : 56, kConsumerRegisters = kDim == 64 ? 208 : 224;
  static_assert(moves_registers(kConsumerRegisters, kProducerRegisters));
  // Is dP computed while weights are? Otherwise it has to wait for their registers.
  static constexpr bool kEager = kDim == 64;
  using Items = KeyGrid<kGroupKeys>;
  using Feed = RowFeed<T, kDim>;
  using Turn = typename Feed::Turn;
  using Scores = float[kTileRows / 8][4];  // [][2 i + c]: key i, row 8 n + 2 (lane % 4) + c
  using Operand = uint32_t[kTileRows / 16][4];
  // What isn't finite is computed again: see attend_forward.h.
  using Careful = KeyGradients<T, kDim, 2, kAllConsumers>;
  static_assert(Careful::kThreads == kConsumers && Careful::kKeys == kPieceKeys);
  using Params = GroupGradientsParams;

  struct Shared {
    union {
      typename Feed::Tiles tiles;
      typename Careful::Shared careful;
    };
    typename Feed::State state;
    int32_t found[kConsumers / 32];
    KeyItem keys;
    bool open;
  };
  struct Sums { float dk[kDim / 8][4], dv[kDim / 8][4]; };

  static Grid grid(const Params& p) { return p.backward.dk.data ? Items::grid(p.backward.forward) : Grid{0}; }

  ATTN_DEVICE static int groups_with_keys(const KeyItem& keys) { return keys.end - keys.begin > kPieceKeys ? 2 : 1; }

  // Does every row of the tile see every key of the piece from `start` on by position?
  ATTN_DEVICE static bool sees_all(const RowTile& t, int32_t start) {
    return start >= t.last_lo && start + kPieceKeys - 1 <= t.first_hi;
  }

  // Products of what a row doesn't see become -inf: by position, and by the bits of a tile from `word` on. `key`: the
  // calling thread's first.
  ATTN_DEVICE static void mask(const TileRows& rows, int32_t key, Scores& s) {
    ATTN_UNROLL
    for (int n = 0; n < kTileRows / 8; ++n) {
      ATTN_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int r = 8 * n + 2 * (seam::lane() % 4) + c;
        ATTN_UNROLL
        for (int i = 0; i < 2; ++i)
          if (!visible(key + 8 * i, rows.lo[r], rows.hi[r], 0, false)) s[n][2 * i + c] = -INFINITY;
      }
    }
  }
  ATTN_DEVICE static void mask_bits(const int32_t* word, const TileRows& rows, int bit, Scores& s) {
    ATTN_UNROLL
    for (int n = 0; n < kTileRows / 8; ++n) {
      ATTN_UNROLL
      for (int c = 0; c < 2; ++c) {
        const uint32_t keep = static_cast<uint32_t>(word[rows.words[8 * n + 2 * (seam::lane() % 4) + c]]) >> bit;
        ATTN_UNROLL
        for (int i = 0; i < 2; ++i)
          if (!(keep >> (8 * i) & 1)) s[n][2 * i + c] = -INFINITY;
      }
    }
  }

  // Products -> weights.
  ATTN_DEVICE static void weigh(const TileRows& rows, float scale, Scores& s) {
    ATTN_UNROLL
    for (int n = 0; n < kTileRows / 8; ++n) {
      ATTN_UNROLL
      for (int c = 0; c < 2; ++c) {
        const RowGradient row = rows.gradient(8 * n + 2 * (seam::lane() % 4) + c);
        ATTN_UNROLL
        for (int e = c; e < 4; e += 2) s[n][e] = score_weight(s[n][e] * scale, row);
      }
    }
  }
  // Weights times gates, as an operand.
  ATTN_DEVICE static void take_weights(const TileRows& rows, const Scores& s, Operand& a) {
    ATTN_UNROLL
    for (int k = 0; k < kTileRows / 16; ++k) {
      float gated[2][4];
      ATTN_UNROLL
      for (int j = 0; j < 2; ++j) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e)
          gated[j][e] = s[2 * k + j][e] * rows.gate[8 * (2 * k + j) + 2 * (seam::lane() % 4) + e % 2];
      }
      Products<T>::pack(a[k], gated, 0);
    }
  }
  // Weights -> gradients of logits, as an operand. g: <dout, v>.
  ATTN_DEVICE static void take_gradients(const TileRows& rows, const Scores& s, const Scores& g, Operand& a) {
    ATTN_UNROLL
    for (int k = 0; k < kTileRows / 16; ++k) {
      float dlogit[2][4];
      ATTN_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int n = 2 * k + j;
        ATTN_UNROLL
        for (int c = 0; c < 2; ++c) {
          const RowGradient row = rows.gradient(8 * n + 2 * (seam::lane() % 4) + c);
          ATTN_UNROLL
          for (int e = c; e < 4; e += 2) dlogit[j][e] = logit_gradient(s[n][e], g[n][e], row);
        }
      }
      Products<T>::pack(a[k], dlogit, 0);
    }
  }

  // One warpgroup, whose keys are piece `group`.
  ATTN_DEVICE static void consume(const AttendParams& p, Shared& shared, int group, Sums& sums) {
    typename Feed::State& state = shared.state;
    typename Feed::Tiles& tiles = shared.tiles;
    const int32_t first = group * kPieceKeys, start = shared.keys.begin + first;
    const int key = seam::warp() % 4 * 16 + seam::lane() / 4;
    const float scale = static_cast<float>(p.scale * kLog2e);
    Scores s;
    Operand weights, gradients;
    Turn now;
    seam::wait_barrier(state.keys_full, 0);
    if (!Feed::next(state, group, now)) return;
    start_dots<T, kDim, kTileRows>(tiles.k, first, tiles.q[now.stage], s);
    for (;;) {
      Scores g;  // here, or it would take registers all along
      typename Feed::Rows &q = tiles.q[now.stage], &dout = tiles.dout[now.stage];
      const TileRows& rows = state.row[now.stage];
      const RowTile& t = state.tile[now.stage];
      if (kEager) start_dots<T, kDim, kTileRows>(tiles.v, first, dout, g);
      seam::group_wait<kEager ? 1 : 0>(s);
      if (!sees_all(t, start)) mask(rows, start + key, s);
      if (t.word[group] >= 0) mask_bits(p.layout.bits + t.word[group] + key / 32, rows, key % 32, s);
      weigh(rows, scale, s);
      take_weights(rows, s, weights);
      start_product<T, kDim>(weights, dout, sums.dv);
      if (kEager) {
        seam::group_wait<1>(g);
      } else {
        seam::group_wait<0>(sums.dv);
        start_dots<T, kDim, kTileRows>(tiles.v, first, dout, g);
        seam::group_wait<0>(g);
      }
      take_gradients(rows, s, g, gradients);
      start_product<T, kDim>(gradients, q, sums.dk);
      const int before = now.stage;
      now.next();
      if (Feed::sees(state, group, now)) {
        start_dots<T, kDim, kTileRows>(tiles.k, first, tiles.q[now.stage], s);
        seam::group_wait<1>(sums.dv, sums.dk);
        seam::arrive_warp(state.empty[before]);
      } else {  // no tile is held while others pass by
        seam::group_wait<0>(sums.dv, sums.dk);
        seam::arrive_warp(state.empty[before]);
        if (!Feed::next(state, group, now)) return;
        start_dots<T, kDim, kTileRows>(tiles.k, first, tiles.q[now.stage], s);
      }
    }
  }

  // Are the sums of the calling thread's keys finite?
  ATTN_DEVICE static bool finite(const Sums& sums, int32_t keys) {
    bool all = true;
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (seam::lane() / 4 + 8 * i >= keys) continue;
      ATTN_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        ATTN_UNROLL
        for (int e = 2 * i; e < 2 * i + 2; ++e)
          all &= std::fabs(sums.dk[n][e]) < INFINITY && std::fabs(sums.dv[n][e]) < INFINITY;
      }
    }
    return all;
  }

  ATTN_DEVICE static void sum_carefully(const BackwardParams& b, const KeyItem& keys,
                                        typename Careful::Shared& shared) {
    ATTN_ROLLED
    for (int32_t begin = keys.begin; begin < keys.end; begin += kPieceKeys) {
      if (seam::thread() == 0) shared.keys = {keys.seq, keys.head_kv, begin, min_i32(begin + kPieceKeys, keys.end)};
      seam::sync_named(kAllConsumers, kConsumers);
      Careful::sum_keys(b, shared);
      seam::sync_named(kAllConsumers, kConsumers);
    }
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const BackwardParams& b = p.backward;
    if (seam::thread() == 0) {
      shared.open = Items::open(b.forward, seam::block_x(), seam::block_y(), shared.keys);
      if (shared.open) Feed::init(shared.state, 4 * groups_with_keys(shared.keys));
    }
    seam::sync_block();
    if (!shared.open) return;
    const KeyItem& keys = shared.keys;
    const int group = seam::warp() / 4;
    if (group == 2) {
      seam::fewer_registers<kProducerRegisters>();
      if (seam::warp() == kConsumers / 32) Feed::produce(p, keys, shared.state, shared.tiles);
      return;
    }
    seam::more_registers<kConsumerRegisters>();
    Sums sums;
    ATTN_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) sums.dk[n][e] = sums.dv[n][e] = 0;
    }
    const int32_t first = seam::warp() * 16;
    if (group < groups_with_keys(keys)) consume(b.forward, shared, group, sums);
    if (block_any<kAllConsumers>(!finite(sums, keys.end - keys.begin - first), shared.found)) {
      sum_carefully(b, keys, shared.careful);
      return;
    }
    store_keys<T>(b.dk, kDim, keys, first, 0, static_cast<float>(b.forward.scale), sums.dk);
    store_keys<T>(b.dv, kDim, keys, first, 0, 1, sums.dv);
  }
};

}  // namespace attn::cuda
