// Which calls of attention, forward and backward, the kernels for sm_90a take; all others are those of sm_80's. By
// shapes, strides and options alone, the same for every call with these, so that results don't depend on values.
#pragma once

#include "cuda/decode_split.h"

namespace attn::cuda {

// A tensor as TMA sees it: sizes of feature, token, head, batch, and the strides of all but the first in bytes.
struct TiledShape { int64_t size[4], stride[3]; };

inline TiledShape tiled_shape(const View4& x, int64_t dim, int64_t tokens, int64_t heads, int64_t batch) {
  TiledShape s{{dim, tokens, heads, batch}, {2 * x.token, 2 * x.head, 2 * x.batch}};
  for (int i = 0; i < 3; ++i) {
    if (s.size[i + 1] == 1) s.stride[i] = 2 * dim;  // of no meaning, but a map wants one
  }
  return s;
}
inline TiledShape tiled_keys(const AttendParams& p, const View4& x) {
  return tiled_shape(x, p.dim, p.tk, p.heads_kv, p.batch);
}

inline TiledShape tiled_rows(const AttendParams& p, const View4& x) {
  return tiled_shape(x, p.dim, p.tq, p.heads, p.batch);
}

inline bool tiles(const View4& x, const TiledShape& s) {
  bool can = reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  for (int64_t stride : s.stride) can &= stride > 0 && stride % 16 == 0 && stride < int64_t{1} << 40;
  for (int64_t size : s.size) can &= size > 0 && size <= INT32_MAX;
  return can;
}

inline bool serves_schedule(const AttendParams& p) {
  switch (p.schedule) {
    case ScheduleKind::range: return true;
    case ScheduleKind::layout: return p.layout.block_q % 64 == 0 && p.layout.block_k % 64 == 0;
    case ScheduleKind::strided: return p.strided.block % 64 == 0;
    case ScheduleKind::gathered: return false;
  }
  return false;
}

// Head dimensions 64 and 128, the same of q, k and v; schedules in blocks of whole pieces (key_pieces.h); the causal
// rule and windows, lengths of sequences, sinks' logits and gates; k and v that TMA can read.
inline bool groups_serve_any(const AttendParams& p) {
  const bool modified = p.softcap != 0 || p.segment_k.data || p.key_log_weight.data || p.paging.table || p.skip_gated;
  return (p.dtype == DType::bf16 || p.dtype == DType::f16) && (p.dim == 64 || p.dim == 128) && p.dim_v == p.dim &&
         serves_schedule(p) && p.rule.sink == 0 && p.scale > 0x1p-100 && !modified && tiles(p.k, tiled_keys(p, p.k)) &&
         tiles(p.v, tiled_keys(p, p.v));
}
inline bool groups_serve(const AttendParams& p) { return !few_rows(p) && groups_serve_any(p); }

// For the backward q and dout have to be so, too. Its tiles are of one head each: short sequences would leave them
// empty.
inline bool groups_serve(const AttendBackwardParams& b) {
  const AttendParams& p = b.forward;
  return (p.tq >= 64 || p.cu_q) && groups_serve_any(p) && tiles(p.q, tiled_rows(p, p.q)) &&
         tiles(b.dout, tiled_rows(p, b.dout));
}

}  // namespace attn::cuda
