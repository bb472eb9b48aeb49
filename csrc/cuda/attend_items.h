// How a pass over query rows, or over keys, is cut into blocks. The grid follows from shapes alone: of a packed batch
// the host knows only the totals and never waits for cu_q and cu_k; each sequence gets at least as many places as it
// has tiles, and blocks find theirs by a binary search.
#pragma once

#include "attn/rows.h"
#include "cuda/grid.h"
#include "cuda/places.h"

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
    token = token_inside(begin, size);
    const int64_t left = size - token;
    count = count < 0 ? 0 : count > left ? static_cast<int32_t>(left) : count;
  };
  inside(x.q_token, p.tq, x.q_token, x.queries);
  inside(x.k_token, p.tk, x.k_token, x.keys);
  return x;
}

// Row tile `tile` of `heads` heads from `head` of a sequence; false if it has no rows.
ATTN_HD bool open_row_tile(const AttendParams& p, const Sequence& seq, const RowTiling& t, int64_t tile, int64_t head,
                           int64_t heads, RowItem& item) {
  item.seq = seq;
  RowGroup& g = item.group;
  if (!open_row_group(p, seq, t, tile, head, g)) return false;
  item.tile_rows = g.q_end - g.q_begin;
  item.rows = static_cast<int32_t>(heads) * item.tile_rows;
  return true;
}

// Row 0's word of LayoutView::bits with a key of the span; -1: the span is whole, or its slot isn't one.
ATTN_HD int64_t word_of_key(const LayoutView& l, const Span& s, int32_t key) {
  if (s.slot < 0 || s.slot >= l.num_slots) return -1;
  return s.slot * l.block_q * ((l.block_k + 31) / 32) + (key - s.origin) / 32;
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
      if (p.sequences == 0) return false;
      auto first = [&](int64_t i) { return first_place(p, t, i, p.cu_q[i]); };
      s = sequence_of_place(p.sequences, place, first);
      part -= first(s);
    } else {
      const int64_t each = uniform_places(p, t);
      s = place / each;
      part = place % each;
    }
    const Sequence seq = sequence_inside(p, s);
    t = row_tiling(p, seq.queries, seq.keys, kRows);
    const int64_t tiles = row_tile_count(t, seq.queries), heads = heads_of_item(p, kRows, kRows);
    return part >= 0 && part < tiles && open_row_tile(p, seq, t, tiles - 1 - part, head_group * heads, heads, item);
  }
};

// Keys of a tile; of float32 half as many take the same memory.
constexpr int kTileKeys = 64;
template <class T> constexpr int kTileKeysOf = kTileKeys * 2 / static_cast<int>(sizeof(T));

// Keys of a block that looks for the rows which see them: neighbours of a sequence, of one kv head.
struct KeyItem {
  Sequence seq;
  int64_t head_kv;
  int32_t begin, end;
};

template <int kKeys> struct KeyGrid {
  ATTN_HD static int64_t first_place(int64_t s, int64_t token) { return token / kKeys + s; }
  ATTN_HD static int64_t uniform_places(const AttendParams& p) { return (p.tk + kKeys - 1) / kKeys; }

  static Grid grid(const AttendParams& p) {
    return {p.cu_k ? first_place(p.sequences, p.tk) : p.batch * uniform_places(p), p.heads_kv};
  }

  // False if the place has no keys. Earlier tiles come first: with a causal mask they are seen by most rows.
  ATTN_HD static bool open(const AttendParams& p, int64_t place, int64_t head_kv, KeyItem& item) {
    int64_t s = 0, part = place;
    if (p.cu_k) {
      if (p.sequences == 0) return false;
      auto first = [&](int64_t i) { return first_place(i, p.cu_k[i]); };
      s = sequence_of_place(p.sequences, place, first);
      part -= first(s);
    } else {
      s = place / uniform_places(p);
      part = place % uniform_places(p);
    }
    item.seq = sequence_inside(p, s);
    item.head_kv = head_kv;
    if (part < 0 || part * kKeys >= item.seq.keys) return false;
    item.begin = static_cast<int32_t>(part * kKeys);
    item.end = min_i32(item.begin + kKeys, item.seq.keys);
    return true;
  }
};

}  // namespace attn::cuda
