// Gradient of segment pooling: every token gets its share of its segment's gradient. Where forward noted which token
// has the maximum, x isn't read; else the maximum is found again from x.
#pragma once

#include "cpu/max_share.h"
#include "cpu/segment_pool.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

template <class T> struct SegmentGradient {
  using S = Sum<T>;
  const SegmentPoolBackwardParams& b;
  const SegmentPoolParams& p;
  const int64_t n;

  explicit SegmentGradient(const SegmentPoolBackwardParams& params)
      : b(params), p(params.forward), n(params.forward.channels) {}

  const T* dout(int64_t batch, int64_t segment) const { return token_row<const T>(b.dout, batch, segment); }

  // share = factor * dout
  void load_share(int64_t batch, int64_t segment, S factor, S* share) const {
    const T* g = dout(batch, segment);
    for_lanes<S>(n, [&](int64_t i, auto w) { put(share + i, get(g + i, w) * factor, w); });
  }

  // dx of a part. `share` is what each of its tokens gets: those that equal m for a maximum (tie first: only the first
  // one, so the share is used up), else the first, the last or all. share is overwritten.
  void write_rows(const SegmentPart& part, const S* m, S* share, T* row, const RowWriter<T>& writer) const {
    if (!p.mask.data && (p.reduce == PoolReduce::mean || p.reduce == PoolReduce::sum)) {
      // The same row for every token: rounded once.
      scale_row<T>(row, S{1}, share, n);
      T* out = static_cast<T*>(b.dx) + (part.batch * p.tokens + part.begin) * n;
      for (int64_t t = part.begin; t < part.end; ++t, out += n) writer.write(row, out);
      return;
    }
    int64_t chosen = kNone;
    if (p.reduce == PoolReduce::first || p.reduce == PoolReduce::last) {
      for (int64_t t = part.begin; t < part.end; ++t) {
        if (!taken(p.mask, part.batch, t)) continue;
        if (chosen == kNone || p.reduce == PoolReduce::last) chosen = t;
      }
    }
    for (int64_t t = part.begin; t < part.end; ++t) {
      T* out = static_cast<T*>(b.dx) + (part.batch * p.tokens + t) * n;
      T* dx = writer.row(out);
      if (!taken(p.mask, part.batch, t) || (chosen != kNone && t != chosen)) {
        clear_row(dx, n);
      } else if (p.reduce != PoolReduce::max) {
        scale_row<T>(dx, S{1}, share, n);
      } else {
        take_share(token_row<const T>(p.x, part.batch, t), m, share, b.tie == TieRule::first, dx, n);
      }
      writer.done(out);
    }
  }

  // dx of a part of a maximum whose tokens are known.
  void write_noted(const SegmentPart& part, const SegmentScratch<T>& scratch, const RowWriter<T>& writer) const {
    const int32_t* token = p.token + (part.batch * p.segments + part.segment) * n;
    S *number = scratch.a, *share = scratch.b;
    load_share(part.batch, part.segment, S{1}, share);
    for (int64_t c = 0; c < n; ++c) number[c] = static_cast<S>(token[c] - part.begin);
    T* out = static_cast<T*>(b.dx) + (part.batch * p.tokens + part.begin) * n;
    const bool direct = n % Lanes<S>::n == 0 && writer.takes_blocks(out);
    for (int64_t t = part.begin; t < part.end; ++t, out += n) {
      const vec<S> here = splat(static_cast<S>(t - part.begin)), zero{};
      T* dx = direct ? out : writer.row(out);
      for_lanes<S>(n, [&](int64_t i, auto w) {
        const vec<S> v = get(number + i, w) == here ? get(share + i, w) : zero;
        if (direct) writer.vector(dx + i, v);
        else put(dx + i, v, w);
      });
      if (!direct) writer.done(out);
    }
  }

  void whole_segment(const SegmentPart& part, const SegmentScratch<T>& scratch, const RowWriter<T>& writer) const {
    const PartRows<T> rows(p, part);
    const S factor = p.reduce == PoolReduce::mean && rows.n > 0 ? 1 / static_cast<S>(rows.n) : S{1};
    load_share(part.batch, part.segment, factor, scratch.b);
    if (p.reduce == PoolReduce::max) {
      reduce_part<T>(p, rows, scratch.a);
      if (b.tie == TieRule::even) {
        count_equal(rows.row, rows.n, scratch.a, scratch.c, n);
        divide_row(scratch.b, scratch.c, n);
      }
    }
    write_rows(part, scratch.a, scratch.b, scratch.row, writer);
  }

  // From the maxima and tie counts of a segment's parts to the maximum and the share of each part.
  void share_out(int64_t batch, int64_t segment, int64_t number, int64_t parts, const int64_t* kept, S* maxima,
                 S* shares, const SegmentScratch<T>& scratch) const {
    int64_t total = 0, only = kNone;
    for (int64_t i = number; i < number + parts; ++i) {
      total += kept[i];
      if (kept[i] > 0 && (only == kNone || p.reduce == PoolReduce::last)) only = i;
    }
    if (p.reduce != PoolReduce::max) {
      const bool one = p.reduce == PoolReduce::first || p.reduce == PoolReduce::last;
      const S factor = p.reduce == PoolReduce::mean && total > 0 ? 1 / static_cast<S>(total) : S{1};
      for (int64_t i = number; i < number + parts; ++i) {
        if (one && i != only) clear_row(shares + i * n, n);
        else load_share(batch, segment, factor, shares + i * n);
      }
      return;
    }
    load_share(batch, segment, S{1}, scratch.b);
    share_among_parts<S>(
        parts, [&](int64_t i) { return maxima + (number + i) * n; },
        [&](int64_t i) { return shares + (number + i) * n; }, b.tie, scratch.b, scratch.a, scratch.c, n);
  }
};

template <class T> inline void segment_backward(const SegmentPoolBackwardParams& b) {
  using S = Sum<T>;
  const SegmentPoolParams& p = b.forward;
  const SegmentGradient<T> gradient(b);
  const int64_t n = p.channels;
  const SegmentItems items(p, chunk_tokens(n));
  const bool maximum = p.reduce == PoolReduce::max;
  const int64_t split = p.token ? 0 : items.partials();  // of segments whose parts have to agree first
  // Of every part of a segment in several parts: its maximum, its share (before: its tie counts), its kept tokens.
  const Buffer<S> maxima(maximum ? split * n : 0), shares(split * n);
  const Buffer<int64_t> kept(split);
  if (split > 0) {
    parallel_runs(items.count(), [&](int64_t item, int) {
      items.for_parts(item, [&](const SegmentPart& part) {
        if (part.whole) return;
        const PartRows<T> rows(p, part);
        kept[part.number] = rows.n;
        if (!maximum) return;
        S* m = maxima + part.number * n;
        reduce_part<T>(p, rows, m);
        if (b.tie == TieRule::even) count_equal(rows.row, rows.n, m, shares + part.number * n, n);
      });
    });
    items.for_split([&](int64_t batch, int64_t segment, int64_t number, int64_t parts) {
      gradient.share_out(batch, segment, number, parts, kept, maxima, shares, carve<SegmentScratch<T>>(n));
    });
  }
  parallel_runs(items.count(), [&](int64_t item, int) {
    const auto scratch = carve<SegmentScratch<T>>(n);
    const RowWriter<T> writer(p.batch * p.tokens * n * int64_t{sizeof(T)} >= kStreamBytes, scratch.row, n);
    items.for_parts(item, [&](const SegmentPart& part) {
      if (p.token) gradient.write_noted(part, scratch, writer);
      else if (part.whole) gradient.whole_segment(part, scratch, writer);
      else gradient.write_rows(part, maxima + part.number * n, shares + part.number * n, scratch.row, writer);
    });
  });
  // Tokens past the last segment of a packed batch.
  if (p.batch != 1) return;
  const int64_t end = p.segments > 0 ? p.offsets[p.segments] : 0;
  clear_row(static_cast<T*>(b.dx) + end * n, (p.tokens - end) * n);
}

}  // namespace pool

inline void segment_pool_backward(const SegmentPoolBackwardParams& p){
    ATTN_POOL_DISPATCH(p.forward.dtype, pool::segment_backward, p)}

ATTN_NAMESPACE_END
