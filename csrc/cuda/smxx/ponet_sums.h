// What PoNet's later passes need beforehand, for every architecture: the query of the global stage, and the maxima of
// segments longer than a tile.
#pragma once

#include "cuda/ponet_join.h"

namespace attn::cuda {

// Sums of a tile's queries; maxima of its runs that aren't whole segments.
template <class T> struct PonetSums {
  static constexpr int kThreads = 256;
  using Params = PonetWork;
  struct Shared {};

  static Grid grid(const Params& f) {
    const bool none = f.p.query && !ponet_may_split(f.p);
    return ChannelItem::grid(none ? 0 : PonetTiles::count(f.p.sequences), f.p.channels, f.wide ? kWide<T> : 1,
                             kThreads);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const PonetParams& p = f.p;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, mine.item, tile) || tile.outside) return;
    const PonetTile<T> x(p, tile, mine.channel);
    if (!p.query) {
      float sum[V];
      int32_t kept = 0;
      set_channels(sum, 0);
      x.template for_kept<V>(p.q, tile.begin, tile.end, [&](int32_t, const Pack<T, V>& q) {
        ++kept;
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) sum[i] += seam::to_float(q.x[i]);
      });
      store_channels(f.sum + tile.index * p.channels + mine.channel, sum);
      if (mine.channel == 0) f.kept[tile.index] = static_cast<float>(kept);
    }
    if (!ponet_may_split(p)) return;
    x.cut.for_runs(x.begin, x.end, [&](const SegmentRun& run) {
      if (run.whole()) return;
      float m[V];
      x.segment_max(run, m);
      store_channels(f.maximum + x.slot(run), m);
    });
  }
};

// The query of a sequence: the mean of q, or what was given. A block has 32 channels.
struct PonetQuery {
  static constexpr int kThreads = kJoinThreads;
  using Params = PonetWork;
  using Shared = JoinShared<2>;

  static Grid grid(const Params& f) { return JoinItem::grid(f.p.sequences.count, f.p.channels, 1); }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    const PonetParams& p = f.p;
    const SequenceTiles tiles(p);
    const int64_t at = tiles.sequence * p.channels + tiles.channel;
    const bool writes = seam::warp() == 0 && tiles.there;
    float* pooled = static_cast<float*>(p.pooled);
    if (p.query) {
      if (writes) pooled[at] = static_cast<const float*>(p.query)[at];
      return;
    }
    float all[2];
    sum_tiles<true>(shared, tiles, p.channels, f.sum, f.kept, all);
    if (writes) pooled[at] = all[1] > 0 ? all[0] * (1 / all[1]) : 0;
  }
};

// Puts together the maximum of the segment longer than a tile that starts in a block's tile.
struct PonetMaxima {
  static constexpr int kThreads = kJoinThreads;
  using Params = PonetWork;
  using Shared = JoinShared<1>;

  static Grid grid(const Params& f) {
    return JoinItem::grid(ponet_may_split(f.p) ? PonetTiles::count(f.p.sequences) : 0, f.p.channels, 1);
  }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    PonetSplit x;
    if (!x.open(f.p)) return;
    float mine[1] = {-INFINITY}, all[1] = {-INFINITY};
    for (int64_t i = x.range.begin; i < x.range.end; ++i) mine[0] = max_or_nan(mine[0], f.maximum[x.part(i)]);
    for_warps(shared, mine, [&](const float (&m)[1]) { all[0] = max_or_nan(all[0], m[0]); });
    if (seam::warp() == 0 && x.there) f.maximum[x.home] = all[0];
  }
};

}  // namespace attn::cuda
