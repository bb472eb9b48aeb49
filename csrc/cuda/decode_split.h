// How the keys of a few query rows (decoding) are cut into parts that blocks take side by side. Where the cuts lie
// follows from the row's own sequence, never from the rest of the batch or from the room in the cache, so that neither
// do the bits of a result.
#pragma once

#include "attn/merge.h"
#include "cuda/attend_items.h"

namespace attn::cuda {

constexpr int kSplitRows = 16;              // queries a call may have, and rows of a block
constexpr int64_t kSplitKeysAtLeast = 256;  // a part amortises its start and its share of the merge
constexpr int64_t kSplitsAtMost = 128;

struct KeyRange { int32_t begin, end; };

// Is this a call for the decode kernel? Packed sequences would leave parts unwritten.
inline bool few_rows(const AttendParams& p) { return p.tq <= kSplitRows && !p.cu_q; }

// Parts of every row's keys. HiP's lists are short and scattered: one block takes them.
ATTN_HD int64_t key_splits(const AttendParams& p) {
  const int64_t n = p.schedule == ScheduleKind::gathered ? 1 : (p.tk + kSplitKeysAtLeast - 1) / kSplitKeysAtLeast;
  return n < 1 ? 1 : n < kSplitsAtMost ? n : kSplitsAtMost;
}

// Part `split` of the keys that group g may see: of those in reach of its window equal shares, and sinks that lie
// before it are the first part's too. Parts past the end are empty.
ATTN_HD KeyRange key_split(const AttendParams& p, const RowGroup& g, int64_t splits, int64_t split) {
  if (splits == 1) return {0, g.keys};
  const Reach r = key_reach(p, g);
  int64_t end = max_i32(r.end, r.sink_end);
  if (p.schedule == ScheduleKind::layout && p.layout.keys < end) end = p.layout.keys;
  const int64_t from = r.sink_end >= r.begin || r.begin >= end ? 0 : r.begin;
  constexpr int64_t kStep = 64;  // cuts lie between whole tiles
  int64_t each = ((end - from + splits - 1) / splits + kStep - 1) / kStep * kStep;
  if (each < kSplitKeysAtLeast) each = kSplitKeysAtLeast;
  const int64_t begin = from + split * each, stop = begin + each < end ? begin + each : end;
  if (split > 0 && begin >= stop) return {0, 0};
  return {static_cast<int32_t>(split == 0 ? 0 : begin), static_cast<int32_t>(stop)};
}

struct DecodeParams {
  AttendParams attend;
  int64_t splits;      // key_splits(attend)
  float* partial;      // [splits, B, H, Tq, Dv] contiguous; unused with one split
  float* partial_lse;  // [splits, B, H, Tq] contiguous
  int64_t blocks;      // for the parts of a row: each block takes every blocks-th of them
};

using DecodeGrid = RowGrid<kSplitRows>;

// Floats that a call needs for partial results; none where one block takes a row's keys.
inline int64_t partial_rows(const AttendParams& p) {
  const int64_t splits = few_rows(p) ? key_splits(p) : 1;
  return splits > 1 ? splits * p.batch * p.heads * p.tq : 0;
}
inline int64_t attend_scratch(const AttendParams& p) { return partial_rows(p) * (p.dim_v + 1); }

inline DecodeParams decode_params(const AttendParams& p, float* scratch) {
  constexpr int64_t kBlocks = 4096;  // several times what any GPU runs at once
  const int64_t splits = key_splits(p), items = DecodeGrid::places(p) * DecodeGrid::head_groups(p);
  const int64_t wanted = items > 0 ? (kBlocks + items - 1) / items : 1;
  return {p, splits, scratch, scratch + partial_rows(p) * p.dim_v, wanted < splits ? wanted : splits};
}

struct MergeSplitsParams {
  MergeStatesParams states;  // float32 parts; `out` isn't used
  View4 out;
};

// What is left to do with more than one part.
inline MergeSplitsParams merge_params(const DecodeParams& d) {
  const AttendParams& p = d.attend;
  const int64_t head = p.tq, batch = p.heads * head, part = p.batch * batch;
  return {{DType::f32,
           d.splits,
           p.batch,
           p.heads,
           p.tq,
           p.dim_v,
           {d.partial, part * p.dim_v, batch * p.dim_v, head * p.dim_v, p.dim_v},
           {d.partial_lse, part, batch, head, 1},
           nullptr,
           p.lse},
          p.out};
}

}  // namespace attn::cuda
