// How a pass over query rows is cut into work items.
#pragma once

#include "cpu/row_block.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN

// Addresses of the rows of `x` (as q) that a span takes.
template <class In>
inline void list_query_rows(const RowSpan& rows, const Sequence& seq, const View4& x, const In** at) {
  const RowGroup& g = rows.group;
  const In* head =
      static_cast<const In*>(x.data) + seq.batch * x.batch + g.head * x.head + (seq.q_token + g.q_begin) * x.token;
  for (int32_t h = 0; h < rows.heads; ++h, head += x.head) {
    for (int32_t i = 0; i < rows.tile_rows; ++i) *at++ = head + i * x.token;
  }
}

// Row tile `t` of heads [head, head + heads) of a sequence; false if it is empty.
inline bool open_span(const AttendParams& p, const RowTiling& tiling, const Sequence& seq, int64_t head, int64_t heads,
                      int64_t t, RowSpan& b) {
  const RowGroup& g = b.group;
  if (!open_row_group(p, seq, tiling, t, head, b.group)) return false;
  b.heads = static_cast<int32_t>(heads);
  b.tile_rows = g.q_end - g.q_begin;
  b.rows = b.heads * b.tile_rows;
  return true;
}

// The same, and what every row sees.
inline bool open_rows(const AttendParams& p, const RowTiling& tiling, const Sequence& seq, int64_t head, int64_t heads,
                      int64_t t, RowBlock& b) {
  if (!open_span(p, tiling, seq, head, heads, t, b)) return false;
  const int32_t* segments = p.segment_q.data;
  if (segments) segments += seq.batch * p.segment_q.batch + seq.q_token * p.segment_q.token;
  fill_rows(p, b, segments, p.segment_q.token);
  return true;
}

// Keys of a split: long enough to amortise an item.
constexpr int64_t kSplitKeys = 2048;

// The items of a pass over query rows: (sequence, heads, row tile, split of the keys).
struct RowItems {
  const AttendParams& p;
  int32_t tile;    // rows of a head
  int64_t heads;   // heads an item flattens
  int64_t splits;  // parts the keys of a sequence are cut into; each is an item, merged afterwards
  ItemIndex index;

  RowItems(const AttendParams& params, bool may_split)
      : p(params), tile(tile_of(params)), heads(heads_of_item(params, tile, kMaxRows)),
        splits(may_split ? splits_of(params) : 1),
        index(params, [this](const Sequence& s) { return tiles_of(s) * (p.heads / heads) * splits; }) {}

  int64_t count() const { return index.count; }
  int64_t rows_at_most() const { return heads * (p.tq < tile ? p.tq : tile); }

  static int32_t tile_of(const AttendParams& p) {
    // Half-size tiles below 1024 queries: enough items for many cores, still two reuses of every packed key tile.
    return p.tq >= 1024 ? kMaxRows : kMaxRows / 2;
  }

  // Few rows (decoding) leave nothing else to share out. The cut depends on shapes only.
  static int64_t splits_of(const AttendParams& p) {
    const int64_t splits = p.tq <= 16 ? (p.tk + kSplitKeys - 1) / kSplitKeys : 1;
    return splits > 1 ? splits : 1;
  }

  int64_t tiles_of(const Sequence& s) const {
    return row_tile_count(row_tiling(p, s.queries, s.keys, tile), s.queries);
  }

  // Fills `b` with the rows of an item; false if it has none.
  bool open(int64_t item, RowBlock& b, Sequence& seq, int64_t& split) const {
    return at(item, seq, split, [&](const RowTiling& tiling, int64_t head, int64_t t) {
      return open_rows(p, tiling, seq, head, heads, t, b);
    });
  }
  // Only which rows they are.
  bool peek(int64_t item, RowSpan& b, Sequence& seq) const {
    int64_t split;
    return at(item, seq, split, [&](const RowTiling& tiling, int64_t head, int64_t t) {
      return open_span(p, tiling, seq, head, heads, t, b);
    });
  }

  // Do the rows of an item look at so few keys that those of consecutive items stay in a core's cache? Then what takes
  // time beside the products is to fetch the rows themselves. `by_window`: where a window moves along, too.
  bool few_keys(int64_t element_bytes, bool by_window) const {
    constexpr int64_t kNear = 256 << 10;  // bytes
    int64_t keys = p.tk;
    if (by_window && p.schedule == ScheduleKind::range && p.rule.left >= 0 && (p.rule.causal || p.rule.right >= 0)) {
      const int64_t reach = int64_t{clamp_position(p.rule.left)} + clamp_position(p.rule.sink) +
                            (p.rule.right < 0 ? 0 : clamp_position(p.rule.right)) + kMaxRows;
      if (reach < keys) keys = reach;
    }
    return !p.cu_q && splits == 1 && keys * (p.dim + p.dim_v) * element_bytes <= kNear;
  }

 private:
  // f(tiling, head, row tile) of an item. With a causal mask later tiles come first: they are the longest, and the
  // queue ends with short ones. Else they come as they lie in memory.
  template <class F> bool at(int64_t item, Sequence& seq, int64_t& split, F&& f) const {
    int64_t which, part;
    index.locate(item, which, part);
    seq = sequence(p, which);
    split = part % splits;
    part /= splits;
    const RowTiling tiling = row_tiling(p, seq.queries, seq.keys, tile);
    const int64_t tiles = row_tile_count(tiling, seq.queries);
    const int64_t t = part % tiles;
    return f(tiling, part / tiles * heads, p.rule.causal ? tiles - 1 - t : t);
  }
};

ATTN_NAMESPACE_END
