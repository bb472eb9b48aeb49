// Segment pooling (attn/pool.h), for every architecture; memory-bound. A thread walks the tokens of a part of a segment
// (segment_call.h); a block puts the parts of a long one together, in an order that depends on the segment alone.
#pragma once

#include "cuda/join_rows.h"
#include "cuda/segment_call.h"
#include "cuda/vectors.h"

namespace attn::cuda {

// The rows of a part at the thread's channels.
template <class T> struct PartRows {
  const SegmentPoolParams& p;
  const SegmentPart& part;
  int64_t channel;

  ATTN_DEVICE bool kept(int32_t t) const { return taken(p.mask, part.batch, t); }
  ATTN_DEVICE const T* at(int32_t t) const {
    return static_cast<const T*>(p.x.data) + part.batch * p.x.batch + t * p.x.token + channel;
  }
  ATTN_DEVICE const T* operator()(int32_t t) const { return kept(t) ? at(t) : nullptr; }

  ATTN_DEVICE int32_t count() const {
    if (!p.mask.data) return part.end - part.begin;
    int32_t n = 0;
    for (int32_t t = part.begin; t < part.end; ++t) n += kept(t);
    return n;
  }
  // The token that "first" or "last" is about, or -1.
  ATTN_DEVICE int32_t chosen() const {
    if (p.reduce == PoolReduce::last) {
      for (int32_t t = part.end; t-- > part.begin;) {
        if (kept(t)) return t;
      }
    } else {
      for (int32_t t = part.begin; t < part.end; ++t) {
        if (kept(t)) return t;
      }
    }
    return -1;
  }
};

constexpr int kPartThreads = 256;

// Parts of segments by vectors of channels, dealt out to threads.
template <class T> Grid part_grid(const SegmentPoolParams& p, bool wide) {
  const SegmentParts parts(p);
  return ChannelItem::grid(parts.batch * parts.places(), p.channels, wide ? kWide<T> : 1, kPartThreads);
}

ATTN_DEVICE bool chooses(PoolReduce reduce) { return reduce == PoolReduce::first || reduce == PoolReduce::last; }

template <int V, class T>
ATTN_DEVICE void finish_segment(const SegmentPoolParams& p, int64_t batch, int64_t segment, int64_t channel,
                                const float (&sum)[V], float kept) {
  const float factor = p.reduce == PoolReduce::mean ? 1 / kept : 1.f;
  float x[V];
  ATTN_UNROLL
  for (int i = 0; i < V; ++i) x[i] = kept > 0 ? sum[i] * factor : 0;
  store_channels(static_cast<T*>(p.out) + (batch * p.segments + segment) * p.channels + channel, x);
}

template <class T> struct SegmentReduce {
  static constexpr int kThreads = kPartThreads;
  using Params = SegmentForwardParams;
  struct Shared {};
  static Grid grid(const Params& f) { return part_grid<T>(f.p, f.wide); }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const SegmentPoolParams& p = f.p;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    SegmentPart part;
    if (!SegmentParts(p).open(mine.item, part) || part.outside) return;
    const PartRows<T> rows{p, part, mine.channel};
    float sum[V];
    int32_t kept = 0;
    if (chooses(p.reduce)) {
      const int32_t t = rows.chosen();
      set_channels(sum, 0);
      if (t >= 0) load_channels(rows.at(t), sum);
      kept = t >= 0;
    } else if (p.reduce == PoolReduce::max) {
      set_channels(sum, -INFINITY);
      for_rows<V, T>(part.begin, part.end, rows, [&](int32_t, const Pack<T, V>& x) {
        ++kept;
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) sum[i] = max_or_nan(sum[i], seam::to_float(x.x[i]));
      });
    } else {
      set_channels(sum, 0);
      for_rows<V, T>(part.begin, part.end, rows, [&](int32_t, const Pack<T, V>& x) {
        ++kept;
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) sum[i] += seam::to_float(x.x[i]);
      });
    }
    if (part.parts == 1) {
      return finish_segment<V, T>(p, part.batch, part.segment, mine.channel, sum, static_cast<float>(kept));
    }
    store_channels(f.part + part.slot * p.channels + mine.channel, sum);
    if (mine.channel == 0) f.kept[part.slot] = kept;
  }
};

// A block puts together the parts of the segment that starts in its window, if it has several.
template <class T> struct SegmentJoin {
  static constexpr int kThreads = kJoinThreads;
  using Params = SegmentForwardParams;
  using Shared = JoinShared<kWide<T> + 1>;

  static Grid grid(const Params& f) {
    const SegmentParts parts(f.p);
    return JoinItem::grid(parts.whole() ? 0 : parts.batch * parts.windows(), f.p.channels, f.wide ? kWide<T> : 1);
  }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    if (f.wide) join<kWide<T>>(f, shared);
    else join<1>(f, shared);
  }

  // Results of rows, and how many: x[V].
  template <int V> struct Partial {
    float x[V + 1];

    ATTN_DEVICE Partial() { set_channels(x, 0); }
    // What comes later.
    ATTN_DEVICE void add(PoolReduce reduce, const float (&y)[V + 1]) {
      if (y[V] == 0) return;
      const bool take = x[V] == 0 || reduce == PoolReduce::last;
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) {
        if (take) x[i] = y[i];
        else if (reduce == PoolReduce::max) x[i] = max_or_nan(x[i], y[i]);
        else if (reduce != PoolReduce::first) x[i] += y[i];
      }
      x[V] += y[V];
    }
  };

  template <int V> ATTN_DEVICE static void join(const Params& f, Shared& shared) {
    const SegmentPoolParams& p = f.p;
    const SegmentParts parts(p);
    const JoinItem item = JoinItem::mine<V>();
    SplitSegment segment;
    if (!parts.open_split(item.group, segment)) return;  // the whole block
    const JoinRange range = JoinRange::mine(segment.parts);
    Partial<V> mine, all;
    for (int64_t i = range.begin; i < range.end && item.channel < p.channels; ++i) {
      const int64_t slot = parts.slot(segment.batch, segment.begin, i);
      float x[V], y[V + 1];
      load_floats(f.part + slot * p.channels + item.channel, x);
      ATTN_UNROLL
      for (int j = 0; j < V; ++j) y[j] = x[j];
      y[V] = static_cast<float>(f.kept[slot]);
      mine.add(p.reduce, y);
    }
    for_warps(shared, mine.x, [&](const float (&x)[V + 1]) { all.add(p.reduce, x); });
    if (seam::warp() != 0 || item.channel >= p.channels) return;
    float sum[V];
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) sum[i] = all.x[i];
    finish_segment<V, T>(p, segment.batch, segment.segment, item.channel, sum, all.x[V]);
  }
};

}  // namespace attn::cuda
