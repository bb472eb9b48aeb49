// A tile of keys: up to kTileKeys keys of one sequence, gathered from the spans of a schedule, with what masking
// needs to know about each.
#pragma once

#include "attn/schedule.h"
#include "cpu/tile_operand.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN

// 192 = 16 AVX2 or 8 half AVX-512 dot blocks of rows: a score strip (192 x 16 floats) stays in L1 and K, V of a tile
// in L2 up to D = 128; wider heads take half as many keys.
constexpr int kTileKeys = 192;
ATTN_INLINE int tile_keys(int64_t dim, int64_t dim_v) { return dim + dim_v <= 256 ? kTileKeys : kTileKeys / 2; }

// How tiles are cut: they end where they are full, or sooner so that of a long span the tiles after it begin at
// multiples of `grid`, which divides the capacity.
struct TileShape {
  int capacity;
  int grid = 1;
  bool lists = true;  // false: one plain run of keys isn't listed key by key until list_keys() asks for it
};

struct KeyTile {
  int n;
  int runs;
  bool any_exempt, any_slot;
  bool listed;    // the arrays of keys are written; else the tile is run[0], whose keys only the window may hide
  int32_t first;  // position of its first key, where it isn't listed
  Run run[kTileKeys];
  int32_t position[kTileKeys];
  int32_t page[kTileKeys], index[kTileKeys];  // where the key lies: page, row in it
  int32_t exempt[kTileKeys];                  // 0 or -1
  int32_t slot[kTileKeys];                    // tile of LayoutView::bits, or -1
  int32_t column[kTileKeys];                  // key's column in that tile

  void clear(bool lists) {
    n = runs = 0;
    any_exempt = any_slot = false;
    listed = lists;
  }

  // Adds keys of a span until it, the page or the tile ends; returns how many. `pages` is the sequence's row of the
  // page table, or null.
  int32_t add(const Span& s, int32_t begin, int32_t sink, int capacity, const int32_t* pages, int32_t page_size) {
    int32_t count = min_i32(s.end - begin, capacity - n);
    int32_t in_page = begin, which = 0;
    if (pages) {
      in_page = begin % page_size;
      which = pages[begin / page_size];
      count = min_i32(count, page_size - in_page);
    }
    Run* last = runs > 0 ? &run[runs - 1] : nullptr;
    const bool goes_on = last && last->page == which && last->begin + last->count == in_page,
               plain = !s.exempt && s.slot < 0 && begin >= sink && (n == 0 || (goes_on && first + n == begin));
    if (!listed && !plain) list_keys();
    if (goes_on) last->count += count;
    else run[runs++] = Run{which, in_page, count};
    if (!listed && n == 0) first = begin;
    if (listed) {
      list(begin, count, run[runs - 1], s, sink);
      any_exempt |= s.exempt | (begin < sink);
      any_slot |= s.slot >= 0;
    }
    n += count;
    return count;
  }

  void list_keys() {
    if (listed) return;
    listed = true;
    const int32_t count = n;
    n = 0;
    if (count > 0) list(first, count, run[0], Span{first, first + count, -1, first, false}, 0);
    n = count;
  }

  // Writes the arrays of `count` more keys from `begin` on, which are the last of run `r`.
  void list(int32_t begin, int32_t count, const Run& r, const Span& s, int32_t sink) {
    const int32_t which = r.page, in_page = r.begin + r.count - count, at = n;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t key = begin + i;
      position[at + i] = key;
      page[at + i] = which;
      index[at + i] = in_page + i;
      exempt[at + i] = -static_cast<int32_t>(s.exempt | (key < sink));
      slot[at + i] = s.slot;
      column[at + i] = key - s.origin;
    }
  }

  // The tile's rows of k or v, whose head starts at `base`.
  template <class In> TokenRows<In> rows(const In* base, const View4& x, int64_t dim) const {
    return {base, x.batch, x.token, dim, run, runs, n, page, index};
  }
};

// Where kv head `head` of a sequence starts: in its batch entry, or in page 0.
template <class In> inline const In* key_base(const AttendParams& p, const View4& x, const Sequence& seq,
                                              int64_t head) {
  return static_cast<const In*>(x.data) + (p.paging.table ? 0 : seq.batch * x.batch) + head * x.head +
         seq.k_token * x.token;
}

// Fills `tile` with the keys group g looks at in [k_lo, k_hi). Whenever it is complete, done(tile) names the one to
// fill from then on.
template <class F>
inline void fill_key_tiles(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, const TileShape& shape,
                           KeyTile* tile, F&& done) {
  const int32_t sink = clamp_position(p.rule.sink);
  const int32_t* pages = p.paging.table ? p.paging.table + g.batch * p.paging.pages : nullptr;
  const int32_t page_size = static_cast<int32_t>(p.paging.page);
  tile->clear(shape.lists);
  visit_keys(p, g, k_lo, k_hi, [&](const Span& s) {
    for (int32_t begin = s.begin; begin < s.end;) {
      const int32_t line = (begin / shape.grid + 1) * shape.grid;
      Span part = s;
      const bool cut = (begin - tile->n) % shape.grid != 0 && line < s.end;
      if (cut) part.end = line;
      begin += tile->add(part, begin, sink, shape.capacity, pages, page_size);
      if (tile->n == shape.capacity || (cut && begin == line)) {
        tile = done(tile);
        tile->clear(shape.lists);
      }
    }
    return true;
  });
  if (tile->n > 0) done(tile);
}

// Calls fn(tile) for every tile of the keys group g looks at in [k_lo, k_hi).
template <class F>
inline void for_each_key_tile(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, int capacity,
                              KeyTile& tile, F&& fn) {
  fill_key_tiles(p, g, k_lo, k_hi, {capacity}, &tile, [&](KeyTile* full) {
    fn(*full);
    return full;
  });
}

// The same with a look ahead: calls fn(tile, the one after it or null). `tiles` are two.
template <class F>
inline void for_each_key_tile_ahead(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi,
                                    const TileShape& shape, KeyTile* tiles, F&& fn) {
  KeyTile* held = nullptr;
  fill_key_tiles(p, g, k_lo, k_hi, shape, tiles, [&](KeyTile* full) {
    if (held) fn(*held, full);
    KeyTile* const free = held ? held : tiles + 1;
    held = full;
    return free;
  });
  if (held) fn(*held, static_cast<KeyTile*>(nullptr));
}

ATTN_NAMESPACE_END
