// A layout's lists (attn/layout.h) on the device, without a look from the host. A warp makes a list, 32 candidates at a
// time in ascending order, so the result is the CPU's and has no use for atomics.
#pragma once

#include "attn/layout.h"
#include "attn/schedule.h"
#include "cuda/grid.h"
#include "cuda/seam.h"

namespace attn::cuda {

constexpr int kListThreads = 128;
constexpr int64_t kListWarps = kListThreads / 32;

inline Grid list_grid(int64_t lists) { return {(lists + kListWarps - 1) / kListWarps}; }
// Of the calling warp.
ATTN_DEVICE int64_t list_index() { return seam::block_x() * kListWarps + seam::warp(); }

// Appends candidate first + lane where `kept`, with its slot.
ATTN_DEVICE void append(const ListsOut& out, int64_t at, int32_t candidate, bool kept, int32_t slot, int32_t& count) {
  const uint32_t all = seam::ballot(kept);
  const int64_t place = at + count + seam::popcount(all & ((1u << seam::lane()) - 1));
  if (kept) out.index[place] = candidate;
  if (kept && out.slot) out.slot[place] = slot;
  count += static_cast<int32_t>(seam::popcount(all));
}
ATTN_DEVICE void finish_list(const ListsOut& out, int64_t list, int64_t at, int32_t width, int32_t count) {
  for (int32_t i = count + seam::lane(); i < width; i += 32) {
    out.index[at + i] = 0;
    if (out.slot) out.slot[at + i] = -1;
  }
  if (seam::lane() == 0) out.count[list] = count;
}

struct LayoutBuild {
  static constexpr int kThreads = kListThreads;
  using Params = LayoutBuildParams;
  struct Shared {};
  static Grid grid(const Params& p) { return list_grid(p.batch * p.heads * p.rows); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const int64_t list = list_index();
    if (list >= p.batch * p.heads * p.rows) return;
    const int64_t row = list % p.rows, head = list / p.rows % p.heads, batch = list / p.rows / p.heads;
    const uint8_t* mask = p.mask + batch * p.mask_batch + head * p.mask_head + row * p.mask_row;
    const int32_t columns = static_cast<int32_t>(p.columns);
    int32_t count = 0;
    for (int32_t first = 0; first < columns; first += 32) {
      const int32_t j = first + seam::lane();
      append(p.out, list * columns, j, j < columns && mask[j] != 0, -1, count);
    }
    finish_list(p.out, list, list * columns, columns, count);
  }
};

// A lane asks a row's list for the column by binary search: reads rows x log2(width) entries a column.
struct LayoutTranspose {
  static constexpr int kThreads = kListThreads;
  using Params = LayoutTransposeParams;
  struct Shared {};
  static Grid grid(const Params& p) { return list_grid(p.batch * p.heads * p.columns); }

  // Where `column` stands in the list, or -1.
  ATTN_DEVICE static int32_t find(const int32_t* list, int32_t count, int64_t width, int32_t column) {
    const int32_t n = min_i32(count, static_cast<int32_t>(width)), i = lower_bound_i32(list, n, column);
    return i < n && list[i] == column ? i : -1;
  }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const LayoutView& l = p.layout;
    const int64_t list = list_index();
    if (list >= p.batch * p.heads * p.columns) return;
    const int64_t column = list % p.columns, head = list / p.columns % p.heads, batch = list / p.columns / p.heads;
    const int32_t rows = static_cast<int32_t>(p.rows), key = static_cast<int32_t>(column);
    const int64_t at = list * rows;
    int32_t count = 0, full_count = 0;
    for (int32_t first = 0; first < rows; first += 32) {
      const int32_t row = first + seam::lane();
      int32_t slot = -1, found = -1, full = -1;
      if (row < rows) {
        const int64_t begin = batch * l.index_batch + head * l.index_head + row * l.index_row;
        found = find(l.index + begin, l.count[batch * l.count_batch + head * l.count_head + row], l.width, key);
        if (found >= 0 && l.slot) slot = l.slot[begin + found];
        if (l.full_count) {
          full = find(l.full_index + batch * l.full_index_batch + head * l.full_index_head + row * l.full_index_row,
                      l.full_count[batch * l.full_count_batch + head * l.full_count_head + row], l.full_width, key);
        }
      }
      append(p.out, at, row, found >= 0, slot, count);
      if (l.full_count) append(p.full, at, row, full >= 0, -1, full_count);
    }
    finish_list(p.out, list, at, rows, count);
    if (l.full_count) finish_list(p.full, list, at, rows, full_count);
  }
};

// A warp turns 32 x 32 bits.
struct TilesTranspose {
  static constexpr int kThreads = kListThreads;
  using Params = TilesTransposeParams;
  struct Shared {};
  ATTN_HD static int64_t words(int64_t bits) { return (bits + 31) / 32; }
  ATTN_HD static int64_t squares(const Params& p) { return p.slots * words(p.block_q) * words(p.block_k); }
  static Grid grid(const Params& p) { return list_grid(squares(p)); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const int64_t square = list_index(), from = words(p.block_k), to = words(p.block_q);
    if (square >= squares(p)) return;
    const int64_t column = square % from, row = square / from % to, slot = square / from / to;
    const int64_t query = 32 * row + seam::lane(), key = 32 * column + seam::lane();
    const uint32_t mine =
        query < p.block_q ? static_cast<uint32_t>(p.bits[(slot * p.block_q + query) * from + column]) : 0;
    uint32_t turned = 0;
    ATTN_UNROLL
    for (int bit = 0; bit < 32; ++bit) {
      const uint32_t word = seam::ballot(mine >> bit & 1);
      if (bit == seam::lane()) turned = word;
    }
    if (key < p.block_k) p.out[(slot * p.block_k + key) * to + row] = static_cast<int32_t>(turned);
  }
};

}  // namespace attn::cuda
