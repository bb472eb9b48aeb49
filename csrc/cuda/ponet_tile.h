// A tile of a sequence as PoNet's passes over tokens see it, at a thread's channels.
#pragma once

#include "cuda/ponet_work.h"
#include "cuda/window_rows.h"

namespace attn::cuda {

// Rows of one tensor, counted from the start of the tile's sequence.
template <class T> struct ChannelRows {
  T* base;
  int64_t stride;
  ATTN_DEVICE T* at(int64_t t) const { return base + t * stride; }
};

// Those of an input, at a channel.
template <class T>
ATTN_DEVICE ChannelRows<const T> ponet_rows(const TokenView& v, const SequenceSpan& s, int64_t channel) {
  return {static_cast<const T*>(v.data) + s.batch * v.batch + s.first * v.token + channel, v.token};
}
// Of a result; null where it isn't wanted.
template <class T>
ATTN_DEVICE ChannelRows<T> ponet_results(const PonetParams& p, const SequenceSpan& s, int64_t channel, void* data) {
  if (!data) return {nullptr, 0};
  return {static_cast<T*>(data) + (s.batch * p.sequences.tokens + s.first) * p.channels + channel, p.channels};
}
// A tile of no sequence: zeros.
template <int V, class T>
ATTN_DEVICE void clear_rows(const PonetParams& p, const TokenTile& tile, int64_t channel, void* result) {
  const ChannelRows<T> out = ponet_results<T>(p, tile.span, channel, result);
  float zeros[V];
  set_channels(zeros, 0);
  for (int32_t t = tile.begin; out.base && t < tile.end; ++t) store_channels(out.at(t), zeros);
}

template <class T>
ATTN_DEVICE WindowRows<T> ponet_local_rows(const PonetParams& p, const SequenceSpan& s, int64_t channel) {
  return {ponet_rows<T>(p.local, s, channel).base,
          p.local.token,
          static_cast<int32_t>(s.length),
          window_half(p.window, s.length),
          1,
          s.batch,
          s.first,
          p.mask,
          p.special};
}

// Its runs of segments.
struct PonetRuns {
  const PonetParams& p;
  const TokenTile& tile;
  int64_t channel;
  SegmentCut cut;
  int32_t begin, end;  // moved to the ends of segments

  ATTN_DEVICE PonetRuns(const PonetParams& params, const TokenTile& t, int64_t c)
      : p(params), tile(t), channel(c), cut{segment_rule(params, t.span), kPonetTokens},
        begin(static_cast<int32_t>(cut.moved(t.begin))), end(static_cast<int32_t>(cut.moved(t.end))) {}

  // Where a run that isn't a whole segment keeps its results; where its segment's are gathered.
  ATTN_DEVICE int64_t slot(const SegmentRun& run) const {
    return SegmentCut::slot(tile.index, begin, run) * p.channels + channel;
  }
  ATTN_DEVICE int64_t home(const SegmentRun& run) const {
    return (2 * tile.first + cut.home_slot(run)) * p.channels + channel;
  }
};

template <class T> struct PonetTile : PonetRuns {
  using PonetRuns::PonetRuns;

  ATTN_DEVICE ChannelRows<const T> rows(const TokenView& v) const { return ponet_rows<T>(v, tile.span, channel); }
  ATTN_DEVICE ChannelRows<T> results(void* data) const { return ponet_results<T>(p, tile.span, channel, data); }

  ATTN_DEVICE bool kept(int64_t at) const { return taken(p.mask, tile.span.batch, tile.span.first + at); }
  ATTN_DEVICE bool special(int64_t at) const {
    return p.special.data && taken(p.special, tile.span.batch, tile.span.first + at);
  }

  // Calls f(token, pack) for the kept tokens of [from, to), of a tensor's rows.
  template <int V, class F> ATTN_DEVICE void for_kept(const TokenView& v, int64_t from, int64_t to, F&& f) const {
    const ChannelRows<const T> x = rows(v);
    for_rows<V, T>(
        static_cast<int32_t>(from), static_cast<int32_t>(to), [&](int32_t t) { return kept(t) ? x.at(t) : nullptr; },
        f);
  }

  // Maximum of the kept tokens of a run.
  template <int V> ATTN_DEVICE void segment_max(const SegmentRun& run, float (&m)[V]) const {
    set_channels(m, -INFINITY);
    for_kept<V>(p.segment, run.begin, run.end, [&](int32_t, const Pack<T, V>& x) {
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) m[i] = max_or_nan(m[i], seam::to_float(x.x[i]));
    });
  }
};

}  // namespace attn::cuda
