// The last passes of PoNet's backward, for every architecture: what each token gets of sums that are known by then.
#pragma once

#include "cuda/smxx/ponet_grad.h"
#include "cuda/window_slide.h"

namespace attn::cuda {

// What each winner of the segment longer than a tile that starts in a block's tile gets.
struct PonetTotals {
  static constexpr int kThreads = kJoinThreads;
  using Params = PonetGradWork;
  using Shared = JoinShared<1>;

  static Grid grid(const Params& f) {
    const PonetParams& p = f.b.forward;
    return JoinItem::grid(f.b.dsegment && ponet_may_split(p) ? PonetTiles::count(p.sequences) : 0, p.channels, 1);
  }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    PonetSplit x;
    if (!x.open(f.b.forward)) return;
    float mine[1] = {0}, all[1] = {0};
    for (int64_t i = x.range.begin; i < x.range.end; ++i) mine[0] += f.total[x.part(i)];
    for_warps(shared, mine, [&](const float (&y)[1]) { all[0] += y[0]; });
    if (seam::warp() != 0 || !x.there) return;
    const float n = f.count[x.tile * x.channels + x.channel];
    f.total[x.home] = f.b.tie == TieRule::even && n > 1 ? all[0] / n : all[0];
  }
};

// dq, and dsegment of segments longer than a tile; nothing but these sums is read.
template <class T> struct PonetGivenRows {
  static constexpr int kThreads = 256;
  using Params = PonetGradWork;
  struct Shared {};

  static Grid grid(const Params& f) {
    const PonetParams& p = f.b.forward;
    const bool any = f.b.dq || (f.b.dsegment && ponet_may_split(p));
    return ChannelItem::grid(any ? PonetTiles::count(p.sequences) : 0, p.channels, f.wide ? kWide<T> : 1, kThreads);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const PonetParams& p = f.b.forward;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, mine.item, tile)) return;
    if (tile.outside) return clear_rows<V, T>(p, tile, mine.channel, f.b.dq);
    const PonetTile<T> x(p, tile, mine.channel);
    if (f.b.dq) {
      float row[V];
      load_floats(f.dmean + tile.sequence * p.channels + mine.channel, row);
      const ChannelRows<T> out = x.results(f.b.dq);
      ATTN_ROLLED
      for (int32_t t = tile.begin; t < tile.end; ++t) {
        float y[V];
        const bool kept = x.kept(t);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) y[i] = kept ? row[i] : 0;
        store_channels(out.at(t), y);
      }
    }
    if (!f.b.dsegment || !ponet_may_split(p)) return;
    x.cut.for_runs(x.begin, x.end, [&](const SegmentRun& run) {
      if (run.whole()) return;
      float share[V];
      load_floats(f.total + x.home(run), share);
      uint32_t winners[V];
      load_words(f.winners + x.slot(run), winners);
      PonetTokenGradients<T>::winner_rows(x, run, f.b.dsegment, winners, share);
    });
  }
};

// dlocal: dy to the maximum of its window, as a gather.
template <class T> struct PonetLocalGradient {
  static constexpr int kThreads = 128;
  static constexpr int kVector = 4;
  using Params = PonetGradWork;
  struct Shared {};

  static Grid grid(const Params& f) {
    const PonetParams& p = f.b.forward;
    return ChannelItem::grid(f.b.dlocal ? PonetTiles::count(p.sequences) : 0, p.channels, f.wide ? kVector : 1,
                             kThreads);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kVector>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const PonetParams& p = f.b.forward;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, mine.item, tile)) return;
    if (tile.outside) return clear_rows<V, T>(p, tile, mine.channel, f.b.dlocal);
    const ChannelRows<T> out = ponet_results<T>(p, tile.span, mine.channel, f.b.dlocal);
    const WindowRows<T> local = ponet_local_rows<T>(p, tile.span, mine.channel);
    const T* dy = ponet_rows<T>(f.b.dout, tile.span, mine.channel).base;
    window_max_gradients<V>(local, dy, f.b.dout.token, tile.begin, tile.end,
                            [&](int32_t t, const float (&g)[V]) { store_channels(out.at(t), g); });
  }
};

}  // namespace attn::cuda
