// The query rows of one work item: a tile of rows of one or several heads of a GQA group that share a schedule (so
// that K and V are fetched once for all of them), flattened and cut into panels of SIMD lanes.
#pragma once

#include "attn/schedule.h"
#include "cpu/micro.h"

ATTN_NAMESPACE_BEGIN

// Rows of an item at most. 128 rows reuse a packed key tile often enough that packing is a few percent.
constexpr int kMaxRows = 128;

// Which rows those are.
struct RowSpan {
  RowGroup group;     // group.head is the first head
  int32_t heads;      // heads flattened into the item
  int32_t tile_rows;  // rows a head
  int32_t rows;       // heads * tile_rows

  int32_t head_of(int32_t r) const { return static_cast<int32_t>(group.head) + r / tile_rows; }
  int32_t query_of(int32_t r) const { return group.q_begin + r % tile_rows; }

  // f(first row, count, head, its first query) for the rows of every head in [first, last).
  template <class F> ATTN_INLINE void for_heads(int32_t first, int32_t last, F&& f) const {
    int32_t head = head_of(first), i = first % tile_rows;
    for (int32_t n; first < last; first += n, ++head, i = 0) {
      n = min_i32(tile_rows - i, last - first);
      f(first, n, head, group.q_begin + i);
    }
  }

  // f(row, head, query) for rows [first, last).
  template <class F> ATTN_INLINE void for_rows(int32_t first, int32_t last, F&& f) const {
    for_heads(first, last, [&](int32_t r, int32_t n, int32_t head, int32_t query) {
      for (int32_t i = 0; i < n; ++i) f(r + i, head, query + i);
    });
  }
};

struct RowBlock : RowSpan {
  int32_t lo[kMaxRows + 64], hi[kMaxRows + 64], cap[kMaxRows + 64];  // RowWindow by lane; 64 lanes of slack to pad
  int32_t segment[kMaxRows + 64];
  int32_t block_row[kMaxRows + 64];  // row inside the layout's block
  bool unbounded;                    // every row sees all keys, as far as its window and segment tell
};

// Fills the per-row arrays. `segments` is null or the ids of the item's sequence (strided).
inline void fill_rows(const AttendParams& p, RowBlock& b, const int32_t* segments, int64_t segment_stride) {
  const RowGroup& g = b.group;
  const int32_t block_begin =
      p.schedule == ScheduleKind::layout ? static_cast<int32_t>(g.block_row * p.layout.block_q) : 0;
  b.unbounded = !p.rule.causal && p.rule.left < 0 && p.rule.left != kEmptyWindow && p.rule.right < 0 && !segments;
  b.for_rows(0, b.rows, [&](int32_t r, int32_t, int32_t i) { b.block_row[r] = i - block_begin; });
  if (b.unbounded) {
    const RowWindow w = row_window(p.rule, 0);  // position doesn't matter
    for (int32_t r = 0; r < b.rows; ++r) {
      b.lo[r] = w.lo;
      b.hi[r] = w.hi;
      b.cap[r] = w.cap;
      b.segment[r] = 0;
    }
  } else {
    b.for_rows(0, b.rows, [&](int32_t r, int32_t, int32_t i) {
      const RowWindow w = row_window(p.rule, row_position(p, g.queries, g.keys, i));
      b.lo[r] = w.lo;
      b.hi[r] = w.hi;
      b.cap[r] = w.cap;
      b.segment[r] = segments ? segments[i * segment_stride] : 0;
    });
  }
  for (int32_t r = b.rows; r < b.rows + 64; ++r) {  // padding lanes see nothing
    b.lo[r] = kUnbounded;
    b.hi[r] = b.cap[r] = -kUnbounded;
    b.segment[r] = b.block_row[r] = 0;
  }
}

// What the rows [first, last) of a panel have in common: used to skip keys and to skip masking.
struct PanelReach {
  int32_t min_lo, max_lo, min_hi, max_hi, min_cap, max_cap;
  int32_t segment;
  bool one_segment;
};

inline PanelReach panel_reach(const RowBlock& b, int32_t first, int32_t last) {
  PanelReach r{b.lo[first], b.lo[first], b.hi[first], b.hi[first], b.cap[first], b.cap[first], b.segment[first], true};
  for (int32_t i = first + 1; i < last && !b.unbounded; ++i) {
    r.min_lo = min_i32(r.min_lo, b.lo[i]);
    r.max_lo = max_i32(r.max_lo, b.lo[i]);
    r.min_hi = min_i32(r.min_hi, b.hi[i]);
    r.max_hi = max_i32(r.max_hi, b.hi[i]);
    r.min_cap = min_i32(r.min_cap, b.cap[i]);
    r.max_cap = max_i32(r.max_cap, b.cap[i]);
    r.one_segment &= b.segment[i] == r.segment;
  }
  return r;
}

ATTN_NAMESPACE_END
