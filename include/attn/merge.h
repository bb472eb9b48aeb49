// Exact merge of N partial attention results over disjoint key sets: with l_n the log-sum-exp of part n,
//   lse = log sum_n exp(l_n),   w_n = exp(l_n - lse),   out = sum_n w_n out_n.
// A part with l_n = -inf has no key: its out_n is never read. A row without any key is out = 0, lse = -inf.
#pragma once

#include "attn/types.h"

namespace attn {

// Rows [B, H, T] of D features in N parts. Strides count elements; the feature dimension is contiguous.
struct PartsView {
  void* data;
  int64_t part, batch, head, token;
};

struct MergeStatesParams {
  DType dtype;  // of outs and out; lses and lse are float32 (float64 for f64)
  int64_t parts, batch, heads, tokens, dim;
  PartsView outs;  // [N, B, H, T, D]
  PartsView lses;  // [N, B, H, T], any strides
  void* out;       // [B, H, T, D] contiguous
  void* lse;       // [B, H, T] contiguous
};

struct MergeStatesBackwardParams {
  DType dtype;
  int64_t parts, batch, heads, tokens, dim;
  PartsView outs;  // as in the forward
  PartsView lses;
  const void* lse;  // [B, H, T] contiguous, as the forward returned it
  View4 dout;       // [B, H, T, D]
  View3 dlse;       // null or [B, H, T] in the type of lse
  void* douts;      // [N, B, H, T, D] contiguous
  void* dlses;      // [N, B, H, T] contiguous
};

namespace cpu {

void merge_states(const MergeStatesParams& params);
void merge_states_backward(const MergeStatesBackwardParams& params);

}  // namespace cpu
}  // namespace attn
