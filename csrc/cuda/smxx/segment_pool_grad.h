// Gradient of segment pooling, as a gather: every token gets its share of its segment's gradient. The maximum is found
// again from x. Segments in several parts take two passes before that of the tokens: what each part holds, and from
// that what each part gets.
#pragma once

#include "attn/schedule.h"
#include "cuda/smxx/segment_pool.h"

namespace attn::cuda {

// Maximum of rows and, per channel, how many have it.
template <int V> struct Maximum {
  float m[V], count[V];

  ATTN_DEVICE Maximum() {
    set_channels(m, -INFINITY);
    set_channels(count, 0);
  }
  ATTN_DEVICE void add(int i, float x) {
    if (x == m[i]) count[i] += 1;
    else if (x > m[i] || x != x) m[i] = x, count[i] = 1;
  }
};

// Of the kept rows of a part.
template <int V, class T> ATTN_DEVICE Maximum<V> maximum_of(const PartRows<T>& rows) {
  Maximum<V> top;
  for_rows<V, T>(rows.part.begin, rows.part.end, rows, [&](int32_t, const Pack<T, V>& x) {
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) top.add(i, seam::to_float(x.x[i]));
  });
  return top;
}

// The parts of segments in several: kept tokens; for a maximum, it and (in `share`) how many tokens have it.
template <class T> struct SegmentPartSums {
  static constexpr int kThreads = kPartThreads;
  using Params = SegmentBackwardParams;
  struct Shared {};

  static Grid grid(const Params& f) {
    return SegmentParts(f.b.forward).whole() ? Grid{0} : part_grid<T>(f.b.forward, f.wide);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const SegmentPoolParams& p = f.b.forward;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    SegmentPart part;
    if (!SegmentParts(p).open(mine.item, part) || part.outside || part.parts == 1) return;
    const PartRows<T> rows{p, part, mine.channel};
    if (mine.channel == 0) f.kept[part.slot] = rows.count();
    if (p.reduce != PoolReduce::max) return;
    const Maximum<V> top = maximum_of<V>(rows);
    const int64_t at = part.slot * p.channels + mine.channel;
    store_channels(f.maximum + at, top.m);
    store_channels(f.share + at, top.count);
  }
};

// Of segments in several parts: the maximum, and what each part's tokens that have it get. A block has a window.
template <class T> struct SegmentMaxShares {
  static constexpr int kThreads = kJoinThreads;
  using Params = SegmentBackwardParams;
  using Shared = JoinShared<2 * kWide<T>>;

  static Grid grid(const Params& f) {
    const SegmentParts parts(f.b.forward);
    const bool none = parts.whole() || f.b.forward.reduce != PoolReduce::max;
    return JoinItem::grid(none ? 0 : parts.batch * parts.windows(), f.b.forward.channels, f.wide ? kWide<T> : 1);
  }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    if (f.wide) join<kWide<T>>(f, shared);
    else join<1>(f, shared);
  }

  // Maxima and, of the rows that have them, the number of the first part or how many there are. In order.
  template <int V> struct Winners {
    float x[2 * V];

    ATTN_DEVICE Winners() {
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) x[i] = -INFINITY, x[V + i] = -1;  // -1: no row
    }
    ATTN_DEVICE void add(TieRule tie, int i, float m, float n) {
      if (n < 0) return;
      if (x[V + i] < 0 || m > x[i] || m != m) x[i] = m, x[V + i] = n;
      else if (m == x[i] && tie == TieRule::even) x[V + i] += n;
    }
  };

  template <int V> ATTN_DEVICE static void join(const Params& f, Shared& shared) {
    const SegmentPoolParams& p = f.b.forward;
    const SegmentParts parts(p);
    const JoinItem item = JoinItem::mine<V>();
    SplitSegment segment;
    if (!parts.open_split(item.group, segment)) return;  // the whole block
    const auto place = [&](int64_t part) {
      return parts.slot(segment.batch, segment.begin, part) * p.channels + item.channel;
    };
    const JoinRange range = JoinRange::mine(item.channel < p.channels ? segment.parts : 0);
    Winners<V> mine, all;
    for (int64_t part = range.begin; part < range.end; ++part) {
      float m[V], count[V];
      load_floats(f.maximum + place(part), m);
      load_floats(f.share + place(part), count);
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) {
        mine.add(f.b.tie, i, m[i],
                 count[i] == 0               ? -1
                 : f.b.tie == TieRule::first ? static_cast<float>(part)
                                             : count[i]);
      }
    }
    for_warps(shared, mine.x, [&](const float (&x)[2 * V]) {
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) all.add(f.b.tie, i, x[i], x[V + i]);
    });
    if (range.begin >= range.end) return;
    float g[V], m[V];
    load_channels(static_cast<const T*>(f.b.dout.data) + segment.batch * f.b.dout.batch +
                      segment.segment * f.b.dout.token + item.channel,
                  g);
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) m[i] = all.x[i];
    for (int64_t part = range.begin; part < range.end; ++part) {
      float share[V];
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) {
        const float n = all.x[V + i];
        if (f.b.tie == TieRule::first) share[i] = n == static_cast<float>(part) ? g[i] : 0;
        else share[i] = n > 0 ? g[i] / n : 0;
      }
      store_channels(f.maximum + place(part), m);
      store_channels(f.share + place(part), share);
    }
  }
};

// The same for other reductions: `kept` of a part becomes that of its segment or, for "first" and "last", whether the
// token is in it. A warp has a window.
struct SegmentKept {
  static constexpr int kThreads = 128;
  using Params = SegmentBackwardParams;
  struct Shared {};

  static Grid grid(const Params& f) {
    const SegmentParts parts(f.b.forward);
    const bool none = parts.whole() || f.b.forward.reduce == PoolReduce::max || f.b.forward.reduce == PoolReduce::sum;
    return {none ? 0 : (parts.batch * parts.windows() + kThreads / 32 - 1) / (kThreads / 32)};
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    const SegmentPoolParams& p = f.b.forward;
    const SegmentParts parts(p);
    const int64_t window = static_cast<int64_t>(seam::block_x()) * (kThreads / 32) + seam::warp();
    SplitSegment segment;
    if (window >= parts.batch * parts.windows() || !parts.open_split(window, segment)) return;  // the whole warp
    int32_t total = 0, first = segment.parts, last = -1;
    for (int32_t part = seam::lane(); part < segment.parts; part += 32) {
      const int32_t kept = f.kept[parts.slot(segment.batch, segment.begin, part)];
      total += kept;
      if (kept > 0) first = min_i32(first, part), last = max_i32(last, part);
    }
    for (int step = 16; step > 0; step /= 2) {
      total += seam::shuffle_xor(total, step);
      first = min_i32(first, seam::shuffle_xor(first, step));
      last = max_i32(last, seam::shuffle_xor(last, step));
    }
    for (int32_t part = seam::lane(); part < segment.parts; part += 32) {
      const int32_t chosen = p.reduce == PoolReduce::first ? first : last;
      f.kept[parts.slot(segment.batch, segment.begin, part)] = chooses(p.reduce) ? part == chosen : total;
    }
  }
};

// The gradient of every token.
template <class T> struct SegmentGradient {
  static constexpr int kThreads = kPartThreads;
  using Params = SegmentBackwardParams;
  struct Shared {};
  static Grid grid(const Params& f) { return part_grid<T>(f.b.forward, f.wide); }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const SegmentPoolParams& p = f.b.forward;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    SegmentPart part;
    if (!SegmentParts(p).open(mine.item, part)) return;
    const PartRows<T> rows{p, part, mine.channel};
    T* dx = static_cast<T*>(f.b.dx) + part.batch * p.tokens * p.channels + mine.channel;
    float share[V], m[V];
    set_channels(share, 0);
    set_channels(m, 0);
    if (!part.outside) {
      load_channels(static_cast<const T*>(f.b.dout.data) + part.batch * f.b.dout.batch + part.segment * f.b.dout.token +
                        mine.channel,
                    share);
    }
    const bool split = part.parts > 1 && !part.outside;
    if (p.reduce == PoolReduce::max && split) {
      load_floats(f.maximum + part.slot * p.channels + mine.channel, m);
      load_floats(f.share + part.slot * p.channels + mine.channel, share);
    } else if (p.reduce == PoolReduce::max) {
      const Maximum<V> top = maximum_of<V>(rows);
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) {
        m[i] = top.m[i];
        if (f.b.tie == TieRule::even && top.count[i] > 0) share[i] /= top.count[i];
      }
    } else if (p.reduce == PoolReduce::mean) {
      const int32_t kept = split ? f.kept[part.slot] : rows.count();
      const float factor = kept > 0 ? 1 / static_cast<float>(kept) : 0;
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) share[i] *= factor;
    }
    const int32_t chosen = chooses(p.reduce) && !(split && f.kept[part.slot] == 0) ? rows.chosen() : -1;
    for (int32_t t = part.begin; t < part.end; ++t) {
      float g[V];
      set_channels(g, 0);
      const bool gets = !part.outside && rows.kept(t) && (!chooses(p.reduce) || t == chosen);
      if (gets && p.reduce == PoolReduce::max) {
        float x[V];
        load_channels(rows.at(t), x);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) {
          const bool hit = x[i] == m[i];
          g[i] = hit ? share[i] : 0;
          if (hit && f.b.tie == TieRule::first) share[i] = 0;
        }
      } else if (gets) {
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) g[i] = share[i];
      }
      store_channels(dx + static_cast<int64_t>(t) * p.channels, g);
    }
  }
};

}  // namespace attn::cuda
