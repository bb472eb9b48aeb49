// The rows of K and V that a handful of queries meets, listed in the order in which they are read, so that what is read
// next can be fetched however the keys are scattered.
#pragma once

#include "cpu/key_tile.h"

ATTN_NAMESPACE_BEGIN

// Keys of a panel. Their rows of K are read, then those of V: as short as the work that a panel costs beside its
// products allows, because a fetch goes on only as far as the rows that come next.
constexpr int kThinPanel = 32;
static_assert(kTileKeys / 2 % kThinPanel == 0, "a tile is whole panels");

// Rows are fetched so many bytes before they are used, counted over K and V together: what memory delivers to a core
// during its own latency (40 GB/s x 150 ns) and some more. CPUs drop fetches when too many are under way.
constexpr int64_t kThinAhead = 8192;
constexpr int kThinAheadRows = 64;  // at most
constexpr int64_t kThinMemoryPage = 4096;
// Tiles a list has room for, so that it is moved to its front once in a few tiles: this one, the next and two more.
constexpr int kThinListed = 4;

template <class In> ATTN_INLINE int rows_of_bytes(int64_t bytes, int64_t dim) {
  const int64_t rows = bytes / (dim * static_cast<int64_t>(sizeof(In)));
  return rows < 1 ? 1 : rows > kThinAheadRows ? kThinAheadRows : static_cast<int>(rows);
}

// Lists rows of a tile in turn, a part at a time.
template <class In> struct RowLister {
  const TokenRows<In>& rows;
  int run = 0, used = 0;  // the run that comes next and how many of its rows are listed

  const In** list(int count, const In** at) {
    while (count > 0) {
      const Run& r = rows.run[run];
      const int n = min_i32(count, r.count - used);
      const In* const row = rows.first(r) + used * rows.stride;
      for (int i = 0; i < n; ++i) at[i] = row + i * rows.stride;
      at += n;
      count -= n;
      used += n;
      if (used < r.count) continue;
      ++run;
      used = 0;
    }
    return at;
  }
};

// Addresses of a tile's rows, 2 n of them: keys of a panel, its values, keys of the next panel.
template <class In> inline void list_panels(const TokenRows<In>& k, const TokenRows<In>& v, const In** at) {
  RowLister<In> keys{k}, values{v};
  for (int i = 0; i < k.n; i += kThinPanel) {
    const int count = min_i32(kThinPanel, k.n - i);
    at = values.list(count, keys.list(count, at));
  }
}

// Looks up the memory pages of n listed rows, for scattered ones: they miss in every buffer of address translation,
// and a fetch waits for its own look-up where many at once go on side by side. The pages of rows that lie one after the
// other are found by the hardware, and looking them up as well takes time.
template <class In> inline void touch_pages(const In* const* rows, int n, int64_t dim) {
  const int step = min_i32(kThinPanel, rows_of_bytes<In>(kThinMemoryPage, dim));
  for (int i = 0; i < n; i += step) __builtin_prefetch(rows[i], 0, 2);
}

ATTN_NAMESPACE_END
