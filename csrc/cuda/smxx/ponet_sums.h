// What PoNet's later passes need beforehand, for every architecture: the query of the global stage, and the maxima of
// segments longer than a tile.
#pragma once

#include "cuda/join_rows.h"
#include "cuda/ponet_tile.h"

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
    const JoinItem item = JoinItem::mine<1>();
    const int64_t first = PonetTiles::first(p.sequences, item.group);
    const bool there = item.channel < p.channels;
    float mine[2] = {0, 0}, all[2] = {0, 0};
    const JoinRange range =
        JoinRange::mine(there && !p.query ? PonetTiles::tiles(span_inside(p.sequences, item.group)) : 0);
    for (int64_t i = range.begin; i < range.end; ++i) {
      mine[0] += f.sum[(first + i) * p.channels + item.channel];
      mine[1] += f.kept[first + i];
    }
    for_warps(shared, mine, [&](const float (&x)[2]) {
      all[0] += x[0];
      all[1] += x[1];
    });
    if (seam::warp() != 0 || !there) return;
    const int64_t at = item.group * p.channels + item.channel;
    static_cast<float*>(p.pooled)[at] = p.query      ? static_cast<const float*>(p.query)[at]
                                        : all[1] > 0 ? all[0] * (1 / all[1])
                                                     : 0;
  }
};

// Puts together the maximum of the segment longer than a tile that starts in a block's tile.
template <class T> struct PonetMaxima {
  static constexpr int kThreads = kJoinThreads;
  using Params = PonetWork;
  using Shared = JoinShared<1>;

  static Grid grid(const Params& f) {
    return JoinItem::grid(ponet_may_split(f.p) ? PonetTiles::count(f.p.sequences) : 0, f.p.channels, 1);
  }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    const PonetParams& p = f.p;
    const JoinItem item = JoinItem::mine<1>();
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, item.group, tile) || tile.outside) return;  // the whole block
    const PonetTile<T> x(p, tile, item.channel);
    SegmentRun segment;
    if (!x.starts_split(segment)) return;
    const bool there = item.channel < p.channels;
    const int64_t home = x.slot(segment);
    const JoinRange range = JoinRange::mine(there ? x.parts(segment) : 0);
    float mine[1] = {-INFINITY}, all[1] = {-INFINITY};
    for (int64_t i = range.begin; i < range.end; ++i) mine[0] = max_or_nan(mine[0], f.maximum[x.part(i, home)]);
    for_warps(shared, mine, [&](const float (&m)[1]) { all[0] = max_or_nan(all[0], m[0]); });
    if (seam::warp() == 0 && there) f.maximum[home] = all[0];
  }
};

}  // namespace attn::cuda
