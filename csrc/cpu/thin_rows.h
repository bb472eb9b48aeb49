// The rows of K and V that a handful of queries meets: a panel of keys at a time, as its first row where the rows of
// common sizes lie one after the other, else as a list of addresses.
#pragma once

#include "cpu/key_tile.h"

ATTN_NAMESPACE_BEGIN

// Keys of a panel: its rows of K are read, then those of V, and meanwhile what comes next is fetched, the V of a panel
// over its K and the next K over its V. So a block of either is what memory delivers to a core during its own latency
// (40 GB/s x 150 ns) and some more. Three blocks fit L1; CPUs drop fetches when too many are under way.
constexpr int64_t kThinBlock = 8192;  // bytes
constexpr int64_t kThinLine = 64;
constexpr int kThinPanelAtMost = 64, kThinPanelAtLeast = 8;
template <class In> ATTN_INLINE int thin_panel_keys(int64_t dim, int64_t dim_v) {
  const int64_t row = (dim > dim_v ? dim : dim_v) * static_cast<int64_t>(sizeof(In));
  int keys = kThinPanelAtMost;
  while (keys > kThinPanelAtLeast && keys * row > kThinBlock) keys /= 2;
  return keys;
}
static_assert(kTileKeys % kThinPanelAtMost == 0, "a tile is whole panels");
static_assert(kTileKeys / 2 % (kThinPanelAtMost / 4) == 0,
              "and so is one of wide heads: a row has more than 256 bytes");

// What a product fetches on the way, as many rows as it goes through. Of `parts` products in turn each fetches its
// part, so that memory is read all the time: rows overlap where they lie closer than they are long.
template <class In> struct FetchedRows {
  const In* first;
  int64_t step, half_step;
  ATTN_INLINE const In* operator[](int64_t i) const { return first + i * step; }
  ATTN_INLINE const In* half(int64_t i, int64_t) const { return first + i * half_step; }
};

// Rows so many elements apart: the compiler's knowing it saves up to a quarter of the products' time.
template <class In, int64_t kStride> struct EvenRows {
  const In* first;
  ATTN_INLINE const In* operator[](int64_t i) const { return first + i * kStride; }
  // Half i of rows `width` wide.
  ATTN_INLINE const In* half(int64_t i, int64_t width) const {
    return width == kStride ? first + i * (kStride / 2) : first + i / 2 * kStride + i % 2 * (width / 2);
  }
  ATTN_INLINE EvenRows from(int64_t i) const { return {first + i * kStride}; }
  // Part `part` of `parts` of `count` rows.
  ATTN_INLINE FetchedRows<In> fetched(int64_t count, int part, int parts) const {
    return {first + count * kStride / parts * part, kStride / parts, kStride / 2 / parts};
  }
};

template <class In> struct ListedRows {
  const In* const* at;
  ATTN_INLINE const In* operator[](int64_t i) const { return at[i]; }
  ATTN_INLINE const In* half(int64_t i, int64_t width) const { return at[i / 2] + i % 2 * (width / 2); }
  ATTN_INLINE ListedRows from(int64_t i) const { return {at + i}; }
  ATTN_INLINE ListedRows fetched(int64_t, int, int) const { return *this; }
};

// Lines further ahead than the next rows, of which the first steps of a product fetch one each: a page lies anywhere,
// and the hardware fetches little of one until it has met some lines of it. Those of its first rows are there early and
// came one by one, and it goes on from them. In float32 it changed no more than what two runs differ by. Later steps
// fetch the last one again, which costs less than to ask.
struct ThinLines {
  const char* first;
  int64_t last;
  ATTN_INLINE void fetch(int64_t i) const { __builtin_prefetch(first + kThinLine * (i < last ? i : last), 0, 3); }
};

// Keys [begin, end) of a tile, and where the rows of their head start.
template <class In> struct ThinKeys {
  const KeyTile* tile;
  int begin, end;
  const In *k, *v;

  // Positions ascend, so keys of one page that are as far apart as they are many are all there.
  bool even() const {
    return !tile->listed ||
           (tile->page[begin] == tile->page[end - 1] && tile->index[end - 1] - tile->index[begin] == end - 1 - begin);
  }
  ATTN_INLINE const In* row(const In* base, const View4& x, int i) const {
    if (tile->listed) return base + tile->page[i] * x.batch + tile->index[i] * x.token;
    return base + tile->run[0].page * x.batch + (tile->run[0].begin + i) * x.token;
  }
  const In* first(const In* base, const View4& x) const { return row(base, x, begin); }
  // `count` rows: past the last one it is repeated.
  ListedRows<In> list(const In* base, const View4& x, int count, const In** at) const {
    if (even()) {
      const In* const start = first(base, x);
      for (int i = 0; i < count; ++i) at[i] = start + min_i32(i, end - 1 - begin) * x.token;
    } else {
      for (int i = 0; i < count; ++i) at[i] = row(base, x, min_i32(begin + i, end - 1));
    }
    return {at};
  }
};

ATTN_NAMESPACE_END
