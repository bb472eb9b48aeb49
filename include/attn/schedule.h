// Schedules: which keys a group of query rows looks at. Each schedule is one function that reports ascending,
// disjoint spans of keys; nothing of size queries x keys is ever built. A span promises that the token rule still has
// to be applied inside it, and that no key outside all spans is visible.
#pragma once

#include "attn/params.h"

namespace attn {

// A run of keys [begin, end) of one sequence.
struct Span {
  int32_t begin, end;
  int32_t slot;    // tile of LayoutView::bits that cuts it, or -1
  int32_t origin;  // first key of that tile
  bool exempt;     // listed keys: exempt from the window (mask.h)
};

// Rows of one sequence that share a schedule, and the union of what their token rules let through.
struct RowGroup {
  int64_t batch, head, head_kv;
  int64_t block_row;       // row of the schedule's own block grid
  int32_t q_begin, q_end;  // rows within the sequence
  int32_t queries, keys;   // lengths of the sequence
  RowWindow reach;         // lowest lo, highest hi, highest cap
};

// How rows are cut into tiles. A tile never crosses a boundary of the schedule's block grid, whose first block is
// `phase` rows short (S2 counts blocks in absolute positions).
struct RowTiling { int32_t block, phase, tile, tiles_per_block; };

}  // namespace attn

ATTN_NAMESPACE_BEGIN

ATTN_HD int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
ATTN_HD int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

// First entry of an ascending list that is not below `value`.
ATTN_HD int32_t lower_bound_i32(const int32_t* list, int32_t count, int32_t value) {
  int32_t lo = 0;
  while (count > 0) {
    const int32_t half = count / 2;
    if (list[lo + half] < value) {
      lo += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return lo;
}

// Position of row i. With rows_at_end every row stands at the last key.
ATTN_HD int64_t row_position(const AttendParams& p, int64_t queries, int64_t keys, int64_t i) {
  return p.rows_at_end ? keys - 1 : i + keys - queries;
}

ATTN_HD RowTiling row_tiling(const AttendParams& p, int64_t queries, int64_t keys, int32_t tile) {
  RowTiling t;
  t.phase = 0;
  t.block = tile;
  if (p.schedule == ScheduleKind::layout) t.block = static_cast<int32_t>(p.layout.block_q);
  if (p.schedule == ScheduleKind::gathered) t.block = static_cast<int32_t>(p.selection.block_q);
  if (p.schedule == ScheduleKind::strided) {
    t.block = static_cast<int32_t>(p.strided.block);
    const int64_t past = (keys - queries) % p.strided.block;
    t.phase = static_cast<int32_t>(past < 0 ? past + p.strided.block : past);
  }
  t.tile = min_i32(tile, t.block);
  t.tiles_per_block = (t.block + t.tile - 1) / t.tile;
  return t;
}

ATTN_HD int64_t row_tile_count(const RowTiling& t, int64_t queries) {
  return queries == 0 ? 0 : (queries + t.phase + t.block - 1) / t.block * t.tiles_per_block;
}

// Rows of tile `index`; may be empty (a short block has fewer tiles than a full one).
ATTN_HD void row_tile(const RowTiling& t, int64_t queries, int64_t index, RowGroup& g) {
  const int64_t block = index / t.tiles_per_block, part = index % t.tiles_per_block;
  const int64_t block_end = (block + 1) * t.block - t.phase;
  int64_t begin = block * t.block - t.phase + part * t.tile;
  int64_t end = begin + t.tile < block_end ? begin + t.tile : block_end;
  if (begin < 0) begin = 0;
  if (end > queries) end = queries;
  g.block_row = block;
  g.q_begin = static_cast<int32_t>(begin);
  g.q_end = static_cast<int32_t>(end > begin ? end : begin);
}

// Position is monotone in the row, so the ends of the group bound its reach.
ATTN_HD void set_reach(const AttendParams& p, RowGroup& g) {
  const RowWindow first = row_window(p.rule, row_position(p, g.queries, g.keys, g.q_begin));
  const RowWindow last = row_window(p.rule, row_position(p, g.queries, g.keys, g.q_end - 1));
  g.reach.lo = first.lo;
  g.reach.hi = last.hi;
  g.reach.cap = last.cap;
}

// What position alone leaves: sinks [0, sink_end) and the window [begin, end).
struct Reach { int32_t sink_end, begin, end; };

ATTN_HD Reach key_reach(const AttendParams& p, const RowGroup& g) {
  Reach r;
  const int32_t cap_end = g.reach.cap >= g.keys ? g.keys : max_i32(g.reach.cap + 1, 0);
  r.sink_end = min_i32(clamp_position(p.rule.sink), cap_end);
  r.begin = max_i32(g.reach.lo, 0);
  r.end = g.reach.hi >= g.keys ? g.keys : max_i32(g.reach.hi + 1, 0);
  if (r.begin > r.end) r.begin = r.end;
  return r;
}

template <class F>
ATTN_HD bool emit_clipped(int32_t begin, int32_t end, int32_t k_lo, int32_t k_hi, Span span, F&& f) {
  span.begin = max_i32(begin, k_lo);
  span.end = min_i32(end, k_hi);
  return span.begin >= span.end || f(span);
}

template <class F>
ATTN_HD bool visit_range(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, F&& f) {
  const Reach r = key_reach(p, g);
  const Span plain{0, 0, -1, 0, false};
  return emit_clipped(0, min_i32(r.sink_end, r.begin), k_lo, k_hi, plain, f) &&
         emit_clipped(r.begin, max_i32(r.end, r.sink_end), k_lo, k_hi, plain, f);
}

// One block of keys cut to what position leaves of it.
template <class F>
ATTN_HD bool emit_block(const Reach& r, int32_t begin, int32_t end, int32_t k_lo, int32_t k_hi, Span span, F&& f) {
  end = min_i32(end, max_i32(r.end, r.sink_end));
  if (begin >= r.sink_end) begin = max_i32(begin, r.begin);
  return emit_clipped(begin, end, k_lo, k_hi, span, f);
}

template <class F>
ATTN_HD bool visit_layout(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, F&& f) {
  const LayoutView& l = p.layout;
  const int32_t block = static_cast<int32_t>(l.block_k);
  const int32_t keys = min_i32(g.keys, static_cast<int32_t>(l.keys));
  const int64_t row = g.block_row;
  const int32_t width = static_cast<int32_t>(l.width);
  const int32_t n = min_i32(l.count[g.batch * l.count_batch + g.head * l.count_head + row], width);
  const int64_t at = g.batch * l.index_batch + g.head * l.index_head + row * l.index_row;
  const int32_t* index = l.index + at;
  const int32_t* slot = l.slot ? l.slot + at : nullptr;
  int32_t full_n = 0;
  const int32_t* full = nullptr;
  if (l.full_count) {
    full_n = l.full_count[g.batch * l.full_count_batch + g.head * l.full_count_head + row];
    full_n = min_i32(full_n, static_cast<int32_t>(l.full_width));
    full = l.full_index + g.batch * l.full_index_batch + g.head * l.full_index_head + row * l.full_index_row;
  }
  const Reach r = key_reach(p, g);
  const int32_t top = min_i32(k_hi, max_i32(r.end, r.sink_end)), last = top > 0 ? (top - 1) / block : -1;
  int32_t i = lower_bound_i32(index, n, k_lo / block), j = full ? lower_bound_i32(full, full_n, k_lo / block) : 0;
  while (i < n || j < full_n) {
    const bool partial = j >= full_n || (i < n && index[i] <= full[j]);
    const int32_t column = max_i32(partial ? index[i] : full[j], 0);
    if (column > last) break;
    const int32_t origin = column * block, cut = partial && slot ? slot[i] : -1;
    if (!emit_block(r, origin, min_i32(origin + block, keys), k_lo, k_hi, Span{0, 0, cut, origin, false}, f))
      return false;
    if (partial) ++i;
    else ++j;
  }
  return true;
}

ATTN_HD bool strided_keeps(const StridedRule& s, int64_t head_kv, int64_t row, int64_t column) {
  if (head_kv >= s.first_dense_head) return true;
  if (s.bidirectional) {
    const int64_t before = row - column - s.local + 1, after = column - row - s.local + 1;
    return ((before > 0 ? before : 0) + (after > 0 ? after : 0)) % s.stride == 0;
  }
  if (column > row) return false;
  return column > row - s.local || (column + head_kv * s.head_step + s.head_offset) % s.stride == 0;
}

// First column after one that isn't kept which may be. The bidirectional rule is searched column by column.
ATTN_HD int64_t strided_next(const StridedRule& s, int64_t head_kv, int64_t row, int64_t column) {
  const int64_t local = row - s.local + 1;
  if (s.bidirectional || column >= local) return column + 1;
  const int64_t past = (column + head_kv * s.head_step + s.head_offset) % s.stride;  // negative for negative shifts
  const int64_t vertical = column + (past < 0 ? -past : s.stride - past);
  return vertical < local ? vertical : local;
}

template <class F>
ATTN_HD bool visit_strided(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, F&& f) {
  const StridedRule& s = p.strided;
  const Reach r = key_reach(p, g);
  // Rows are blocked by absolute position, so the first row's position names the block.
  const int64_t row = (static_cast<int64_t>(g.q_begin) + g.keys - g.queries) / s.block;
  const int32_t block = static_cast<int32_t>(s.block);
  const int32_t top = min_i32(k_hi, max_i32(r.end, r.sink_end));
  for (int64_t column = k_lo / block; column * block < top;) {
    if (!strided_keeps(s, g.head_kv, row, column)) {
      column = strided_next(s, g.head_kv, row, column);
      continue;
    }
    const int32_t origin = static_cast<int32_t>(column * block);
    if (!emit_block(r, origin, min_i32(origin + block, g.keys), k_lo, k_hi, Span{0, 0, -1, origin, false}, f))
      return false;
    ++column;
  }
  return true;
}

// Sinks, listed blocks and the window as one ascending sequence in which every key appears once. Listed blocks may
// repeat or overlap each other, the sinks and the window; keys past the sequence are dropped.
template <class F>
ATTN_HD bool visit_gathered(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, F&& f) {
  const SelectionView& s = p.selection;
  const Reach r = key_reach(p, g);
  const int64_t mask_head = s.heads == p.heads ? g.head : s.heads == 1 ? 0 : g.head_kv;
  const int32_t width = static_cast<int32_t>(s.width);
  const int32_t n = min_i32(s.count[g.batch * s.count_batch + mask_head * s.count_head + g.block_row], width);
  const int32_t* index = s.index + g.batch * s.index_batch + mask_head * s.index_head + g.block_row * s.index_row;
  const int32_t cap_end = g.reach.cap >= g.keys ? g.keys : max_i32(g.reach.cap + 1, 0);
  const int32_t block = static_cast<int32_t>(s.block_k);
  const Span listed{0, 0, -1, 0, true}, plain{0, 0, -1, 0, false};
  int32_t next = 0;  // keys below are done
  auto emit_listed = [&](int32_t begin, int32_t end) {
    begin = max_i32(begin, next);
    end = min_i32(end, cap_end);
    if (begin >= end) return true;
    const int32_t gap = max_i32(next, r.begin);
    next = end;
    return emit_clipped(gap, min_i32(begin, r.end), k_lo, k_hi, plain, f) &&
           emit_clipped(begin, end, k_lo, k_hi, listed, f);
  };
  if (!emit_listed(0, r.sink_end)) return false;
  // Blocks that end at or below k_lo can't matter.
  for (int32_t i = k_lo > 0 ? lower_bound_i32(index, n, k_lo - block + 1) : 0; i < n; ++i) {
    const int32_t begin = index[i];
    if (begin < 0) continue;
    if (begin >= cap_end || begin >= k_hi) break;
    if (!emit_listed(begin, begin > kUnbounded - block ? kUnbounded : begin + block)) return false;
  }
  return emit_clipped(max_i32(next, r.begin), r.end, k_lo, k_hi, plain, f);
}

// Reports the spans of [k_lo, k_hi) that group g looks at, ascending, until f(span) returns false; returns whether all
// were reported. Going on from the end of the last one costs no more than a binary search.
template <class F>
ATTN_HD bool visit_keys(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, F&& f) {
  switch (p.schedule) {
    case ScheduleKind::range: return visit_range(p, g, k_lo, k_hi, f);
    case ScheduleKind::layout: return visit_layout(p, g, k_lo, k_hi, f);
    case ScheduleKind::strided: return visit_strided(p, g, k_lo, k_hi, f);
    case ScheduleKind::gathered: return visit_gathered(p, g, k_lo, k_hi, f);
  }
  return true;
}

ATTN_NAMESPACE_END
