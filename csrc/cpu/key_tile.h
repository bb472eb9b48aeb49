// A tile of keys: up to kTileKeys keys of one sequence, gathered from the spans of a schedule, with what masking
// needs to know about each.
#pragma once

#include "attn/schedule.h"
#include "cpu/tile_operand.h"

ATTN_NAMESPACE_BEGIN

// 192 = 16 AVX2 or 8 half AVX-512 dot blocks of rows: a score strip (192 x 16 floats) stays in L1 and K, V of a tile
// in L2 up to D = 128; wider heads take half as many keys.
constexpr int kTileKeys = 192;
ATTN_INLINE int tile_keys(int64_t dim, int64_t dim_v) { return dim + dim_v <= 256 ? kTileKeys : kTileKeys / 2; }

struct KeyTile {
  int n;
  int runs;
  bool any_exempt, any_slot;
  Run run[kTileKeys];
  int32_t position[kTileKeys];
  int32_t exempt[kTileKeys];  // 0 or -1
  int32_t slot[kTileKeys];    // tile of LayoutView::bits, or -1
  int32_t column[kTileKeys];  // key's column in that tile

  void clear() {
    n = runs = 0;
    any_exempt = any_slot = false;
  }

  // Adds keys of a span until the tile holds `capacity`; returns how many.
  int32_t add(const Span& s, int32_t begin, int32_t sink, int capacity) {
    const int32_t count = min_i32(s.end - begin, capacity - n);
    if (runs > 0 && run[runs - 1].begin + run[runs - 1].count == begin) run[runs - 1].count += count;
    else run[runs++] = Run{begin, count};
    for (int32_t i = 0; i < count; ++i) {
      const int32_t key = begin + i;
      position[n + i] = key;
      exempt[n + i] = -static_cast<int32_t>(s.exempt | (key < sink));
      slot[n + i] = s.slot;
      column[n + i] = key - s.origin;
    }
    any_exempt |= s.exempt | (begin < sink);
    any_slot |= s.slot >= 0;
    n += count;
    return count;
  }
};

// Calls fn(tile) for every tile of the keys group g looks at in [k_lo, k_hi).
template <class F>
inline void for_each_key_tile(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, int capacity,
                              KeyTile& tile, F&& fn) {
  const int32_t sink = clamp_position(p.rule.sink);
  tile.clear();
  visit_keys(p, g, k_lo, k_hi, [&](const Span& s) {
    for (int32_t begin = s.begin; begin < s.end;) {
      begin += tile.add(s, begin, sink, capacity);
      if (tile.n == capacity) {
        fn(tile);
        tile.clear();
      }
    }
  });
  if (tile.n > 0) fn(tile);
}

ATTN_NAMESPACE_END
