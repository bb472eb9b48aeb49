// How a pass over query rows is cut into blocks. The grid follows from shapes alone: of a packed batch the host knows
// only the totals and never waits for cu_q; each sequence gets at least as many places as it has row tiles, and blocks
// find theirs by a binary search.
#pragma once

#include "attn/rows.h"
#include "cuda/grid.h"

namespace attn::cuda {

// Rows of a block: a tile of rows of one or several heads of a GQA group that share a schedule, head after head.
struct RowItem {
  Sequence seq;
  RowGroup group;  // group.head is the first head
  int32_t tile_rows, rows;

  ATTN_HD int32_t head_of(int32_t r) const { return static_cast<int32_t>(group.head) + r / tile_rows; }
  ATTN_HD int32_t query_of(int32_t r) const { return group.q_begin + r % tile_rows; }
};

// A sequence inside the tensors, whatever cu_seqlens or key lengths say: on a GPU nobody has looked at them.
ATTN_HD Sequence sequence_inside(const AttendParams& p, int64_t s) {
  Sequence x = sequence(p, s);
  const auto inside = [](int64_t begin, int64_t size, int64_t& token, int32_t& count) {
    token = begin < 0 ? 0 : begin > size ? size : begin;
    const int64_t left = size - token;
    count = count < 0 ? 0 : count > left ? static_cast<int32_t>(left) : count;
  };
  inside(x.q_token, p.tq, x.q_token, x.queries);
  inside(x.k_token, p.tk, x.k_token, x.keys);
  return x;
}

template <int kRows> struct RowGrid {
  // Places before sequence s of a packed batch, which starts at `token`. A sequence of n tokens that starts anywhere
  // touches at most one block more than the quotients differ by, and one more where its first block is short.
  ATTN_HD static int64_t first_place(const AttendParams& p, const RowTiling& t, int64_t s, int64_t token) {
    const int64_t spare = p.schedule == ScheduleKind::strided ? 2 : 1;
    return (token / t.block + s * spare) * t.tiles_per_block;
  }

  // Places of every batch entry. key_lengths may shorten S2's first block by any number of rows.
  ATTN_HD static int64_t uniform_places(const AttendParams& p, const RowTiling& t) {
    const int64_t phase = p.schedule == ScheduleKind::strided ? t.block - 1 : 0;
    return (p.tq + phase + t.block - 1) / t.block * t.tiles_per_block;
  }

  static int64_t places(const AttendParams& p) {
    const RowTiling t = row_tiling(p, 0, 0, kRows);
    return p.cu_q ? first_place(p, t, p.sequences, p.tq) : p.batch * uniform_places(p, t);
  }
  static int64_t head_groups(const AttendParams& p) { return p.heads ? p.heads / heads_of_item(p, kRows, kRows) : 0; }
  static Grid grid(const AttendParams& p) { return {places(p), head_groups(p)}; }

  // False if the place has no rows. Later tiles come first: with a causal mask they are the longest.
  ATTN_HD static bool open(const AttendParams& p, int64_t place, int64_t head_group, RowItem& item) {
    RowTiling t = row_tiling(p, 0, 0, kRows);
    int64_t s = 0, part = place;
    if (p.cu_q) {
      int64_t end = p.sequences;
      while (end - s > 1) {
        const int64_t mid = (s + end) / 2;
        if (first_place(p, t, mid, p.cu_q[mid]) <= place) s = mid;
        else end = mid;
      }
      if (p.sequences == 0) return false;
      part -= first_place(p, t, s, p.cu_q[s]);
    } else {
      const int64_t each = uniform_places(p, t);
      s = place / each;
      part = place % each;
    }
    item.seq = sequence_inside(p, s);
    t = row_tiling(p, item.seq.queries, item.seq.keys, kRows);
    const int64_t tiles = row_tile_count(t, item.seq.queries), heads = heads_of_item(p, kRows, kRows);
    if (part >= tiles) return false;
    RowGroup& g = item.group;
    g.batch = item.seq.batch;
    g.head = head_group * heads;
    g.head_kv = g.head / (p.heads / p.heads_kv);
    g.queries = item.seq.queries;
    g.keys = item.seq.keys;
    row_tile(t, item.seq.queries, tiles - 1 - part, g);
    if (g.q_begin >= g.q_end) return false;
    set_reach(p, g);
    item.tile_rows = g.q_end - g.q_begin;
    item.rows = static_cast<int32_t>(heads) * item.tile_rows;
    return true;
  }
};

}  // namespace attn::cuda
