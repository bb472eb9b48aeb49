// PoNet's gradients of o and segment and the sums for the global stage, for every architecture; memory-bound. dy, o and
// segment are read once: a run's maximum is kept with the tokens that have it, a bit each, which is all that the
// gradient of `segment` needs once their sum of t is known. For a segment longer than a tile that is after all tiles
// (ponet_grad_rows.h).
#pragma once

#include "cuda/ponet_grad_work.h"
#include "cuda/ponet_join.h"

namespace attn::cuda {

// Maximum of a run's kept tokens and which of them have it. A run has 32 tokens at most: of a longer segment a tile
// cuts a part.
template <int V> struct RunMaximum {
  float m[V];
  Pack<uint32_t, V> winners;  // bit i: the run's token i

  template <class T> ATTN_DEVICE RunMaximum(const PonetTile<T>& x, const SegmentRun& run) {
    set_channels(m, -INFINITY);
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) winners.x[i] = 0;
    const int32_t begin = static_cast<int32_t>(run.begin);
    x.template for_kept<V>(x.p.segment, run.begin, run.end, [&](int32_t t, const Pack<T, V>& row) {
      const uint32_t bit = 1u << ((t - begin) & 31);
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) {
        const float y = seam::to_float(row.x[i]);
        if (y == m[i]) winners.x[i] |= bit;
        else if (y > m[i]) m[i] = y, winners.x[i] = bit;
        else if (y != y) m[i] = y, winners.x[i] = 0;  // a NaN is the maximum of nothing's gradient
      }
    });
  }
};

ATTN_DEVICE uint32_t lowest_bit(uint32_t x) { return x & (0 - x); }

// The parts of segments longer than a tile: maximum and winners.
template <class T> struct PonetParts {
  static constexpr int kThreads = 256;
  static constexpr int kVector = 4;
  using Params = PonetGradWork;
  struct Shared {};

  static Grid grid(const Params& f) {
    const PonetParams& p = f.b.forward;
    return ChannelItem::grid(f.wants_split() ? PonetTiles::count(p.sequences) : 0, p.channels, f.wide ? kVector : 1,
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
    if (!PonetTiles::open(p.sequences, mine.item, tile) || tile.outside) return;
    const PonetTile<T> x(p, tile, mine.channel);
    x.cut.for_runs(x.begin, x.end, [&](const SegmentRun& run) {
      if (run.whole()) return;
      const RunMaximum<V> top(x, run);
      store_channels(f.maximum + x.slot(run), top.m);
      seam::store_whole(f.winners + x.slot(run), top.winners);
    });
  }
};

// Of the segment longer than a tile that starts in a block's tile: its maximum, and which winners of its parts are its.
struct PonetWinners {
  static constexpr int kThreads = kJoinThreads;
  using Params = PonetGradWork;
  using Shared = JoinShared<2>;

  static Grid grid(const Params& f) {
    return JoinItem::grid(f.wants_split() ? PonetTiles::count(f.b.forward.sequences) : 0, f.b.forward.channels, 1);
  }

  // Maximum and either the first part that has it (-1: none) or how many tokens do. In order.
  struct Top {
    float x[2];

    ATTN_DEVICE void add(TieRule tie, float m, float n) {
      if (m > x[0] || m != m) x[0] = m, x[1] = n;
      else if (m == x[0]) x[1] = tie == TieRule::even ? x[1] + n : x[1] < 0 ? n : x[1];
    }
  };

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    PonetSplit x;
    if (!x.open(f.b.forward)) return;
    const bool even = f.b.tie == TieRule::even;
    const float none = even ? 0.f : -1.f;
    Top mine{{-INFINITY, none}}, all{{-INFINITY, none}};
    for (int64_t i = x.range.begin; i < x.range.end; ++i) {
      const uint32_t winners = f.winners[x.part(i)];
      const float n = static_cast<float>(even ? static_cast<int64_t>(seam::popcount(winners)) : i);
      mine.add(f.b.tie, f.maximum[x.part(i)], winners == 0 ? none : n);
    }
    for_warps(shared, mine.x, [&](const float (&y)[2]) { all.add(f.b.tie, y[0], y[1]); });
    for (int64_t i = x.range.begin; i < x.range.end; ++i) {
      const int64_t at = x.part(i);
      const uint32_t winners = f.maximum[at] == all.x[0] ? f.winners[at] : 0;
      if (even) f.winners[at] = winners;
      else f.winners[at] = all.x[1] == static_cast<float>(i) ? lowest_bit(winners) : 0;
    }
    if (seam::warp() != 0 || !x.there) return;  // it has the first part
    f.maximum[x.home] = all.x[0];
    f.count[x.tile * x.channels + x.channel] = all.x[1];
  }
};

// do, dsegment of segments within a tile, and sums of t: of parts of longer segments, of tiles for dG.
template <class T> struct PonetTokenGradients {
  static constexpr int kThreads = 128;
  static constexpr int kVector = 4;  // channels of a thread where rows are wide: more would cost it its registers
  using Params = PonetGradWork;
  struct Shared {};

  static Grid grid(const Params& f) {
    const PonetParams& p = f.b.forward;
    return ChannelItem::grid(f.wants_tokens() ? PonetTiles::count(p.sequences) : 0, p.channels, f.wide ? kVector : 1,
                             kThreads);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kVector>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const PonetBackwardParams& b = f.b;
    const PonetParams& p = b.forward;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, mine.item, tile)) return;
    if (tile.outside) {
      for (void* result : {b.d_o, b.dsegment}) clear_rows<V, T>(p, tile, mine.channel, result);
      return;
    }
    const PonetTile<T> x(p, tile, mine.channel);
    float G[V], sum[V];
    load_floats(static_cast<const float*>(p.global) + tile.sequence * p.channels + mine.channel, G);
    set_channels(sum, 0);
    const bool maxima = b.d_o || b.dsegment;
    x.cut.for_runs(x.begin, x.end, [&](const SegmentRun& run) {
      float total[V];
      set_channels(total, 0);
      if (run.whole() && maxima) {
        RunMaximum<V> top(x, run);
        token_rows<V>(f, x, run, G, top.m, total, sum);
        if (b.dsegment) segment_rows(f, x, run, top.winners.x, total);
      } else {
        float m[V];
        set_channels(m, 0);
        if (maxima) load_floats(f.maximum + x.home(run), m);
        token_rows<V>(f, x, run, G, m, total, sum);
        if (maxima && !run.whole()) store_channels(f.total + x.slot(run), total);
      }
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) sum[i] += total[i];
    });
    if (f.wants_keys()) store_channels(f.sum + tile.index * p.channels + mine.channel, sum);
  }

  // do of a run's tokens; t is added to `total`, for special tokens, which have no segment, to `sum`.
  template <int V>
  ATTN_DEVICE static void token_rows(const Params& f, const PonetTile<T>& x, const SegmentRun& run, const float (&G)[V],
                                     const float (&m)[V], float (&total)[V], float (&sum)[V]) {
    constexpr int kAtOnce = 4;
    const ChannelRows<const T> dy = x.rows(f.b.dout), o = x.rows(x.p.o);
    const ChannelRows<T> out = x.results(f.b.d_o);
    const int32_t end = static_cast<int32_t>(run.end);
    ATTN_ROLLED
    for (int32_t t = static_cast<int32_t>(run.begin); t < end; t += kAtOnce) {
      Pack<T, V> gradient[kAtOnce] = {}, factor[kAtOnce] = {};
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (t + i >= end || !x.kept(t + i)) continue;
        gradient[i] = load_vector<T, V>(dy.at(t + i));
        factor[i] = load_vector<T, V>(o.at(t + i));
      }
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (t + i >= end) break;
        const bool special = x.special(t + i), kept = x.kept(t + i);
        float y[V];
        ATTN_UNROLL
        for (int j = 0; j < V; ++j) {
          const float g = seam::to_float(gradient[i].x[j]), product = g * seam::to_float(factor[i].x[j]);
          (special ? sum[j] : total[j]) += product;
          y[j] = !kept ? 0 : special ? g * G[j] : g * (G[j] + m[j]);
        }
        if (f.b.d_o) store_channels(out.at(t + i), y);
      }
    }
  }

  // dsegment of a whole segment's tokens.
  template <int V>
  ATTN_DEVICE static void segment_rows(const Params& f, const PonetTile<T>& x, const SegmentRun& run,
                                       uint32_t (&winners)[V], const float (&total)[V]) {
    float share[V];
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      if (f.b.tie == TieRule::first) winners[i] = lowest_bit(winners[i]);
      const uint32_t n = seam::popcount(winners[i]);
      share[i] = n > 1 ? total[i] / static_cast<float>(n) : total[i];
    }
    winner_rows(x, run, f.b.dsegment, winners, share);
  }

  // A run's rows of dsegment: `share` where a bit is set.
  template <int V>
  ATTN_DEVICE static void winner_rows(const PonetTile<T>& x, const SegmentRun& run, void* dsegment,
                                      const uint32_t (&winners)[V], const float (&share)[V]) {
    const ChannelRows<T> out = x.results(dsegment);
    ATTN_ROLLED
    for (int64_t t = run.begin; t < run.end; ++t) {
      float y[V];
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) y[i] = (winners[i] >> ((t - run.begin) & 31) & 1) != 0 ? share[i] : 0;
      store_channels(out.at(t), y);
    }
  }
};

}  // namespace attn::cuda
