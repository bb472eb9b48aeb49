// dQ and the gradient of the gate, on tensor cores from sm_80 on. Like the forward: a block takes query rows, a warp 16
// of them, and key tiles of 64 pass through shared memory; half of each of float32. Scores and their gradients stay in
// registers: as accumulators of their products they have the form that operand A of the next one wants.
//
// Shared memory, of a block: 2 kDim (2 kRows + 2 * 64) bytes of 16-bit rows, as much of float32, and 6 KiB: 54, 70 and
// 134 KiB.
#pragma once

#include "cuda/sm80/key_walk.h"
#include "cuda/sm80/score_gradients.h"

namespace attn::cuda {

// kRows: of a block. kBarrier: of its threads, where a block has more.
template <class T, int kDim, int kRows = kDim == 64 ? 2 * kTileKeysOf<T> : kTileKeysOf<T>, int kBarrier = 0>
struct QueryGradients {
  static constexpr int kTile = kTileKeysOf<T>;
  static constexpr int kWarps = kRows / kWarpRows, kThreads = 32 * kWarps;
  // Keys of which a warp has the scores at once: what registers allow.
  static constexpr int kKeys = kDim == 256 || (Products<T>::kSplit && kDim == 128) ? 16 : 32;
  using Items = RowGrid<kRows>;
  using Tile = KeyTile<kTile>;
  using Warp = WarpAttend<T, kDim, kKeys>;
  using Params = BackwardParams;
  struct Shared {
    SharedRows<T, kDim, kRows> q, dout;
    SharedRows<T, kDim, kTile> k, v;
    Tile tile[2];
    int32_t found[kWarps];
    RowItem item;
    bool open;
  };
  struct Sums {
    float dq[kDim / 8][4], gate[2];  // gate: over the thread's own columns

    ATTN_DEVICE void clear() {
      ATTN_UNROLL
      for (int n = 0; n < kDim / 8; ++n) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0;
      gate[0] = gate[1] = 0;
    }
  };

  static Grid grid(const Params& b) { return b.dq.data ? Items::grid(b.forward) : Grid{0}; }

  ATTN_DEVICE static void attend(const Params& b, const RowItem& item, const RowGradient (&gradient)[2], Shared& shared,
                                 Sums& sums) {
    const AttendParams& p = b.forward;
    const bool segments = p.segment_k.data;
    const int32_t first = seam::warp() * kWarpRows;
    const bool idle = first >= item.rows;
    RowsReach reach = RowsReach::of(p, item, idle ? 0 : first, min_i32(first + kWarpRows, item.rows));
    typename Warp::Row rows[2];
    Warp::load_rows(p, item, first, rows, reach);
    for_each_key_tile<kThreads, kBarrier>(p, item, shared, shared.k, [&](const Tile& t, bool scanned) {
      if (idle || reach.sees_none(t, segments)) return;
      const bool masked = !reach.sees_all(t, segments), found = scanned && any_found(shared.found);
      ATTN_ROLLED
      for (int key = 0; key < t.n; key += kKeys) {
        typename Warp::Scores s, g;
        Warp::multiply_keys(shared.q, first, shared.k, key, s);
        Warp::multiply_keys(shared.dout, first, shared.v, key, g);
        score_gradients<Warp>(
            p, t, masked, s, g,
            [&](int n, int e) {
              return ScorePlace<typename Warp::Row>{key + 8 * n + 2 * (seam::lane() % 4) + e % 2, rows[e / 2],
                                                    gradient[e / 2]};
            },
            [&](int e, float projection, float) { sums.gate[e / 2] += projection; });
        if (found) Warp::multiply_values_not_finite(shared.k, key, g, sums.dq);
        else Warp::multiply_values(shared.k, key, g, sums.dq);
      }
    });
  }

  ATTN_DEVICE static void finish(const Params& b, const RowItem& item, Sums& sums) {
    const AttendParams& p = b.forward;
    const bool pairs = stores_pairs<T>(b.dq);
    const float scale = static_cast<float>(p.scale);
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      sums.gate[i] += seam::shuffle_xor(sums.gate[i], 1);
      sums.gate[i] += seam::shuffle_xor(sums.gate[i], 2);
      const int32_t r = Warp::row_of(seam::warp() * kWarpRows, i);
      if (r >= item.rows) continue;
      if (b.dhead_gate && seam::lane() % 4 == 0) b.dhead_gate[lse_index(p, item, r)] = sums.gate[i];
      T* dq = row_of_item<T>(b.dq, item, r);
      ATTN_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        store_pair(dq, 8 * n + 2 * (seam::lane() % 4), p.dim, pairs, sums.dq[n][2 * i] * scale,
                   sums.dq[n][2 * i + 1] * scale);
      }
    }
  }

  ATTN_DEVICE static void sum_rows(const Params& b, const RowItem& item, Shared& shared) {
    Sums sums;
    sums.clear();
    RowGradient gradient[2];
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) gradient[i] = row_gradient(b, item, Warp::row_of(seam::warp() * kWarpRows, i));
    if (block_any<kBarrier>(gradient[0].lse2 != INFINITY || gradient[1].lse2 != INFINITY, shared.found)) {
      load_rows<kThreads>(b.forward.q, b.forward.dim, item, shared.q);  // part of the first tile's group of copies
      load_rows<kThreads>(b.dout, b.forward.dim_v, item, shared.dout);
      attend(b, item, gradient, shared, sums);
    }
    finish(b, item, sums);
  }

  ATTN_DEVICE static void run(const Params& b, Shared& shared) {
    if (seam::thread() == 0) shared.open = Items::open(b.forward, seam::block_x(), seam::block_y(), shared.item);
    seam::sync_block();
    if (shared.open) sum_rows(b, shared.item, shared);
  }
};

}  // namespace attn::cuda
