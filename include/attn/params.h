// Arguments of the attend kernels, for every backend: plain data, no torch. Unless a field says otherwise, pointers
// are never null and sizes are >= 0; csrc/ops has checked shapes, types and ranges before a kernel sees them.
#pragma once

#include "attn/mask.h"
#include "attn/types.h"

namespace attn {

enum class ScheduleKind : int32_t {
  range,     // every key the token rule allows
  layout,    // BlockLayout: lists of key blocks per query block
  strided,   // S2: local blocks and a vertical stride, by formula
  gathered,  // HiP: lists of short key blocks per query block, plus sink and window
};

// BlockLayout. Lists are [B|1, H|1, M, N] with one entry per kept block, ascending in their first `count` entries.
struct LayoutView {
  int64_t block_q, block_k;
  int64_t keys;          // keys from here on are not seen
  const int32_t* count;  // [B|1, H|1, M]
  int64_t count_batch, count_head;
  const int32_t* index;  // [B|1, H|1, M, N]
  int64_t index_batch, index_head, index_row;
  int64_t width;              // N; a larger count means it (on a GPU nobody has looked)
  const int32_t* full_count;  // null: no second list
  int64_t full_count_batch, full_count_head;
  const int32_t* full_index;
  int64_t full_index_batch, full_index_head, full_index_row;
  int64_t full_width;
  const int32_t* slot;  // null, or shaped and strided like index: entry's tile in `bits`, -1 = wholly kept
  const int32_t* bits;  // [P, block_q, ceil(block_k / 32)], bit j%32 of word j/32 = key j of the block is kept
  int64_t num_slots;    // P
};

// S2: block (i, j) is kept iff i - local < j <= i or (j + shift) % stride == 0, with shift = kv_head * head_step +
// head_offset. Bidirectional: relative rule with `local` blocks on either side.
struct StridedRule {
  int64_t block, local, stride, head_step, head_offset;
  int64_t first_dense_head;  // kv heads from here on keep every block
  bool bidirectional;
};

// HiP selection: [B, Hm, M, K] first keys of chosen blocks, ascending in their first `count` entries.
struct SelectionView {
  int64_t block_q, block_k;
  const int32_t* index;
  int64_t index_batch, index_head, index_row;
  int64_t width;  // K; a larger count means it
  const int32_t* count;
  int64_t count_batch, count_head;
  int64_t heads;  // Hm: H, Hkv or 1
};

// Paged caches: k and v are [P, Hkv, page, D] (their batch stride steps over pages), and key position t of sequence b
// lies in page table[b * pages + t / page] at row t % page.
struct PageTable {
  const int32_t* table;  // null: not paged
  int64_t pages, page;
  int64_t stored;  // P; an entry outside of it has no keys (on a GPU nobody has looked)
};

struct AttendParams {
  DType dtype;
  int64_t batch, heads, heads_kv, tq, tk, dim, dim_v;
  View4 q, k, v, out;
  void* lse;            // [B, H, Tq] contiguous, float32 (float64 for f64)
  const int32_t* cu_q;  // null, or [sequences + 1]: packed sequences, batch == 1
  const int32_t* cu_k;
  int64_t sequences;
  const int32_t* key_lengths;  // null, or [B]: keys of each batch entry (decoding); tk is then the longest allowed
  PageTable paging;
  double scale, softcap;  // softcap 0 = off
  TokenRule rule;
  bool rows_at_end;             // every row stands at the last key (HiP without causal)
  IdView segment_q, segment_k;  // both or neither
  View3 key_log_weight;         // float32 [B, Hkv, Tk]
  const float* sink_logits;     // null or [H]
  View3 head_gate;              // float32 [B, H, Tq]
  bool skip_gated;              // rows whose gate is 0 need no lse
  ScheduleKind schedule;
  LayoutView layout;
  StridedRule strided;
  SelectionView selection;
};

struct AttendBackwardParams {
  AttendParams forward;  // q, k, v, out, lse as the forward saved them
  View4 dout;
  const void* dlse;        // null or [B, H, Tq] contiguous, type of lse
  View4 dq;                // in the inputs' type; null: neither it nor dhead_gate is wanted
  View4 dk, dv;            // both or neither; null: nor is dkey_log_weight wanted
  float* dkey_log_weight;  // null or [B, Hkv, Tk] contiguous
  float* dsink_logits;     // null or [H]
  float* dhead_gate;       // null or [B, H, Tq] contiguous
};

struct SelectParams {
  DType dtype;
  int64_t batch, heads, heads_kv, tq, tk, dim;
  View4 q, k;
  int64_t mask_k, block_q, block_k, stride_q, window;
  bool center;  // representative block of a node: its centre, else its first
  bool causal;
  int64_t heads_mask;  // Hm: H, Hkv or 1
  int32_t* index;      // [B, Hm, M, ceil(mask_k / block_k)] contiguous
  int32_t* count;      // [B, Hm, M] contiguous
};

}  // namespace attn
