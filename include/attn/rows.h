// Which query rows a work item takes: sequences of a call, and heads whose rows share K and V.
#pragma once

#include "attn/schedule.h"

ATTN_NAMESPACE_BEGIN

// One sequence: a batch entry, or a stretch of a packed batch.
struct Sequence {
  int64_t batch, q_token, k_token;  // where it starts
  int32_t queries, keys;
};

ATTN_HD Sequence sequence(const AttendParams& p, int64_t s) {
  if (!p.cu_q) {
    const int64_t keys = p.key_lengths ? p.key_lengths[s] : p.tk;
    return {s, 0, 0, static_cast<int32_t>(p.tq), static_cast<int32_t>(keys)};
  }
  // In 64 bits: on a GPU nobody has looked at the bounds, and sequence_inside corrects what they give.
  const int64_t q = p.cu_q[s], k = p.cu_k[s];
  return {0, q, k, static_cast<int32_t>(p.cu_q[s + 1] - q), static_cast<int32_t>(p.cu_k[s + 1] - k)};
}

ATTN_HD int64_t sequence_count(const AttendParams& p) { return p.cu_q ? p.sequences : p.batch; }

// Query heads of a GQA group whose rows see the same keys.
ATTN_HD int64_t heads_sharing_schedule(const AttendParams& p) {
  const int64_t group = p.heads_kv ? p.heads / p.heads_kv : 1;
  if (p.schedule == ScheduleKind::layout) {
    const LayoutView& l = p.layout;
    return l.count_head == 0 && l.index_head == 0 && l.full_count_head == 0 && l.full_index_head == 0 ? group : 1;
  }
  if (p.schedule == ScheduleKind::gathered) return p.selection.heads == p.heads ? 1 : group;
  return group;
}

// Row tile `tile` of a head of a sequence, with what its rows reach; false if it has no rows.
ATTN_HD bool open_row_group(const AttendParams& p, const Sequence& seq, const RowTiling& t, int64_t tile, int64_t head,
                            RowGroup& g) {
  g.batch = seq.batch;
  g.head = head;
  g.head_kv = head / (p.heads / p.heads_kv);
  g.queries = seq.queries;
  g.keys = seq.keys;
  row_tile(t, seq.queries, tile, g);
  if (g.q_begin >= g.q_end) return false;
  set_reach(p, g);
  return true;
}

// Heads an item of at most `rows` rows flattens, `tile` rows of each at most.
ATTN_HD int64_t heads_of_item(const AttendParams& p, int32_t tile, int32_t rows) {
  const int64_t block_tile = row_tiling(p, 0, 0, tile).tile;
  const int64_t tile_rows = p.tq < block_tile ? (p.tq > 0 ? p.tq : 1) : block_tile;
  const int64_t share = heads_sharing_schedule(p);
  int64_t heads = 1;
  for (int64_t h = 2; h <= share; ++h) {
    if (share % h == 0 && h * tile_rows <= rows) heads = h;
  }
  return heads;
}

ATTN_NAMESPACE_END
