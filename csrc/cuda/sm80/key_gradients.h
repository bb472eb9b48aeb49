// dK, dV and the gradient of the keys' weights, on tensor cores from sm_80 on. A block takes 64 (of float32: 32)
// neighbouring keys of a kv head, which stay in shared memory with their sums in registers: sums of a fixed order, over
// tiles of the rows of every query head of the group. Which tiles look at its keys the block finds from the forward's
// own schedule, a tile for each thread at a time; nothing is transposed in memory.
//
// Everything is the forward's turned around: a warp takes 16 keys (operand A) against rows of a tile, and the scores
// that come out are operand A for dV += P^T dout and dK += dS^T q.
//
// Shared memory, of a block: 2 kDim (2 * 64 + 2 * 64) bytes and 8 KiB: 40, 72 and 136 KiB.
#pragma once

#include "cuda/sm80/key_walk.h"
#include "cuda/sm80/score_gradients.h"

namespace attn::cuda {

// What a warp has summed up for the 16 keys from the item's `first` on, of the features from group `group` of 8 on.
template <class T, int kGroups>
ATTN_DEVICE void store_keys(const View4& x, int64_t dim, const KeyItem& keys, int32_t first, int group, float scale,
                            const float (&sum)[kGroups][4]) {
  const bool pairs = stores_pairs<T>(x);
  ATTN_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int32_t key = keys.begin + first + seam::lane() / 4 + 8 * i;
    if (key >= keys.end) continue;
    T* to =
        static_cast<T*>(x.data) + keys.seq.batch * x.batch + keys.head_kv * x.head + (keys.seq.k_token + key) * x.token;
    ATTN_UNROLL
    for (int n = 0; n < kGroups; ++n) {
      store_pair(to, 8 * (group + n) + 2 * (seam::lane() % 4), dim, pairs, sum[n][2 * i] * scale,
                 sum[n][2 * i + 1] * scale);
    }
  }
}

// Warps that share 16 keys and each sum a part of the features: what registers allow.
template <class T, int kDim> constexpr int kKeyParts = Products<T>::kSplit ? kDim / 64 : kDim > 128 ? 2 : 1;

// kBarrier: of its threads, where a block has more.
template <class T, int kDim, int kParts = kKeyParts<T, kDim>, int kBarrier = 0> struct KeyGradients {
  static constexpr int kKeys = kTileKeysOf<T>, kRows = kKeys;  // of a tile
  // Rows of which a warp has the scores at once: what registers allow.
  static constexpr int kColumns = kDim == 64 && !Products<T>::kSplit ? 32 : 16;
  static constexpr int kGroups = kDim / 8 / kParts;
  static constexpr int kKeyWarps = kKeys / 16, kWarps = kKeyWarps * kParts, kThreads = 32 * kWarps;
  using Warp = WarpAttend<T, kDim, kColumns>;
  using Items = KeyGrid<kKeys>;
  using Tile = KeyTile<kKeys>;
  using Params = BackwardParams;
  using Row = typename Warp::Row;
  struct Shared {
    SharedRows<T, kDim, kKeys> k, v;
    SharedRows<T, kDim, kRows> q, dout;
    KeyItem keys;
    RowItem item[2];
    Tile tile[2];  // the keys as the item's rows look at them
    Row row[kRows];
    RowGradient gradient[kRows];
    uint32_t touching[kWarps];  // a bit for each thread's row tile
    int32_t found_q[kWarps], found_dout[kWarps];
    bool open;
  };
  struct Sums { float dk[kGroups][4], dv[kGroups][4], weight[2]; };  // weight: over the thread's own columns

  // The row tiles of all heads that read the keys, numbered.
  struct Tiles {
    RowTiling tiling;
    int64_t per_head, heads, count;  // heads: flattened in a tile

    ATTN_DEVICE static Tiles of(const AttendParams& p, const Sequence& seq) {
      Tiles t;
      t.tiling = row_tiling(p, seq.queries, seq.keys, kRows);
      t.per_head = row_tile_count(t.tiling, seq.queries);
      // Not heads_of_item: that goes by p.tq, which depends on the other sequences of a packed batch.
      const int64_t share = heads_sharing_schedule(p), rows = min_i32(seq.queries, t.tiling.tile);
      t.heads = 1;
      for (int64_t h = 2; h <= share; ++h) {
        if (share % h == 0 && h * rows <= kRows) t.heads = h;
      }
      t.count = t.per_head * (p.heads / p.heads_kv / t.heads);
      return t;
    }
    ATTN_DEVICE bool open(const AttendParams& p, const KeyItem& keys, int64_t i, RowItem& item) const {
      const int64_t head = keys.head_kv * (p.heads / p.heads_kv) + i / per_head * heads;
      return open_row_tile(p, keys.seq, tiling, i % per_head, head, heads, item);
    }
    ATTN_DEVICE bool touches(const AttendParams& p, const KeyItem& keys, int64_t i) const {
      RowItem item;
      return i < count && open(p, keys, i, item) &&
             !visit_keys(p, item.group, keys.begin, keys.end, [](const Span&) { return false; });
    }
  };

  static Grid grid(const Params& b) { return b.dk.data ? Items::grid(b.forward) : Grid{0}; }

  // The next thread from `i` whose row tile touches the keys, or -1.
  ATTN_DEVICE static int next_touching(const Shared& shared, int i) {
    for (; i < kThreads; ++i) {
      const uint32_t left = shared.touching[i / 32] >> (i % 32);
      if (left & 1) return i;
      if (left == 0) i |= 31;
    }
    return -1;
  }

  // For a warp.
  ATTN_DEVICE static void prepare(const AttendParams& p, const Tiles& tiles, int64_t i, Shared& shared, int turn) {
    const KeyItem& keys = shared.keys;
    if (seam::lane() == 0) tiles.open(p, keys, i, shared.item[turn]);
    seam::sync_warp();
    fill_key_tile<true>(p, shared.item[turn], keys.begin, keys.end, shared.tile[turn]);
  }

  ATTN_DEVICE static void load_keys_of(const View4& x, int64_t dim, const KeyItem& keys,
                                       SharedRows<T, kDim, kKeys>& to) {
    to.template load<kThreads>(static_cast<const T*>(x.data) + keys.seq.batch * x.batch + keys.head_kv * x.head,
                               static_cast<int>(dim), rows_aligned<T>(x), [&](int r) {
                                 return keys.begin + r < keys.end ? (keys.seq.k_token + keys.begin + r) * x.token : -1;
                               });
  }

  // The rows of the tile, each by a thread.
  ATTN_DEVICE static void load_tile_rows(const Params& b, const RowItem& item, Shared& shared) {
    const int r = seam::thread();
    if (r >= kRows) return;
    shared.gradient[r] = row_gradient(b, item, r);
    if (r < item.rows) shared.row[r] = Warp::row(b.forward, item, r);
    else shared.row[r] = {{kUnbounded, -kUnbounded, -kUnbounded}, 0, 0};  // sees nothing
  }

  // The calling warp's keys against the rows of the tile.
  ATTN_DEVICE static void add(const AttendParams& p, const RowItem& item, const Tile& t, bool scanned, Shared& shared,
                              Sums& sums) {
    const bool segments = p.segment_k.data;
    const bool found_q = scanned && any_found(shared.found_q), found_dout = scanned && any_found(shared.found_dout);
    const int key = seam::warp() % kKeyWarps * 16, group = seam::warp() / kKeyWarps * kGroups;
    ATTN_ROLLED
    for (int first = 0; first < item.rows; first += kColumns) {
      RowsReach reach = RowsReach::of(p, item, first, min_i32(first + kColumns, item.rows));
      if (segments) {
        const int32_t segment = shared.row[min_i32(first + seam::lane() % kColumns, item.rows - 1)].segment;
        reach.segment_low = reach.segment_high = segment;
        warp_range(reach.segment_low, reach.segment_high);
      }
      if (reach.sees_none(t, segments)) continue;
      typename Warp::Scores s, g;
      Warp::multiply_keys(shared.k, key, shared.q, first, s);
      Warp::multiply_keys(shared.v, key, shared.dout, first, g);
      score_gradients<Warp>(
          p, t, !reach.sees_all(t, segments), s, g,
          [&](int n, int e) {
            const int r = first + 8 * n + 2 * (seam::lane() % 4) + e % 2;
            return ScorePlace<Row>{Warp::row_of(key, e / 2), shared.row[r], shared.gradient[r]};
          },
          [&](int e, float, float dlogit) { sums.weight[e / 2] += dlogit; });
      if (found_dout) Warp::multiply_values_not_finite(shared.dout, first, s, sums.dv, group);
      else Warp::multiply_values(shared.dout, first, s, sums.dv, group);
      if (found_q) Warp::multiply_values_not_finite(shared.q, first, g, sums.dk, group);
      else Warp::multiply_values(shared.q, first, g, sums.dk, group);
    }
  }

  ATTN_DEVICE static void attend(const Params& b, Shared& shared, Sums& sums) {
    const AttendParams& p = b.forward;
    const KeyItem& keys = shared.keys;
    const Tiles tiles = Tiles::of(p, keys.seq);
    for (int64_t base = 0; base < tiles.count; base += kThreads) {
      const uint32_t touching = seam::ballot(tiles.touches(p, keys, base + seam::thread()));
      if (seam::lane() == 0) shared.touching[seam::warp()] = touching;
      sync_threads<kThreads, kBarrier>();
      int i = next_touching(shared, 0);
      if (seam::warp() == 0 && i >= 0) prepare(p, tiles, base + i, shared, 0);
      for (int turn = 0; i >= 0; turn ^= 1) {
        sync_threads<kThreads, kBarrier>();  // the tile is prepared, and the one before done with
        const RowItem& item = shared.item[turn];
        load_rows<kThreads>(p.q, p.dim, item, shared.q);
        load_rows<kThreads>(b.dout, p.dim_v, item, shared.dout);
        seam::copy_commit();
        load_tile_rows(b, item, shared);
        i = next_touching(shared, i + 1);
        if (seam::warp() == 0 && i >= 0) prepare(p, tiles, base + i, shared, turn ^ 1);
        const Tile& t = shared.tile[turn];
        const bool scanned =
            Products<T>::kSplit || p.segment_k.data || !RowsReach::of(p, item, 0, item.rows).sees_all(t, false);
        seam::copy_wait<0>();
        if (scanned) {
          find_not_finite<kThreads>(shared.q, shared.found_q);
          find_not_finite<kThreads>(shared.dout, shared.found_dout);
        }
        sync_threads<kThreads, kBarrier>();
        add(p, item, t, scanned, shared, sums);
      }
      sync_threads<kThreads, kBarrier>();  // everyone has read `touching`
    }
  }

  ATTN_DEVICE static void store_weights(const Params& b, const KeyItem& keys, Sums& sums) {
    const AttendParams& p = b.forward;
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      sums.weight[i] += seam::shuffle_xor(sums.weight[i], 1);
      sums.weight[i] += seam::shuffle_xor(sums.weight[i], 2);
      const int key = keys.begin + Warp::row_of(seam::warp() % kKeyWarps * 16, i);
      if (seam::warp() >= kKeyWarps || seam::lane() % 4 || key >= keys.end) continue;
      b.dkey_log_weight[(keys.seq.batch * p.heads_kv + keys.head_kv) * p.tk + keys.seq.k_token + key] = sums.weight[i];
    }
  }

  // Of the keys in shared.keys.
  ATTN_DEVICE static void sum_keys(const Params& b, Shared& shared) {
    const AttendParams& p = b.forward;
    const KeyItem& keys = shared.keys;
    Sums sums;
    ATTN_UNROLL
    for (int n = 0; n < kGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) sums.dk[n][e] = sums.dv[n][e] = 0;
    }
    sums.weight[0] = sums.weight[1] = 0;
    load_keys_of(p.k, p.dim, keys, shared.k);
    load_keys_of(p.v, p.dim_v, keys, shared.v);
    seam::copy_commit();
    attend(b, shared, sums);
    seam::copy_wait<0>();  // where no row looks at the keys
    const int32_t first = seam::warp() % kKeyWarps * 16;
    const int group = seam::warp() / kKeyWarps * kGroups;
    store_keys<T>(b.dk, p.dim, keys, first, group, static_cast<float>(p.scale), sums.dk);
    store_keys<T>(b.dv, p.dim_v, keys, first, group, 1, sums.dv);
    if (b.dkey_log_weight) store_weights(b, keys, sums);
  }

  ATTN_DEVICE static void run(const Params& b, Shared& shared) {
    if (seam::thread() == 0) shared.open = Items::open(b.forward, seam::block_x(), seam::block_y(), shared.keys);
    seam::sync_block();
    if (shared.open) sum_keys(b, shared);
  }
};

}  // namespace attn::cuda
