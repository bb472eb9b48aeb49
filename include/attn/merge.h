// Exact merge of N partial attention results over disjoint key sets: with l_n the log-sum-exp of part n,
//   lse = log sum_n exp(l_n),   w_n = exp(l_n - lse),   out = sum_n w_n out_n.
// A part with l_n = -inf has no key: its out_n is never read. A row without any key is out = 0, lse = -inf.
#pragma once

#include <cmath>

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

ATTN_NAMESPACE_BEGIN

// lse of the merge; part_lse(n) is l_n. A NaN among them comes through.
template <class S, class Lse> ATTN_HD S merged_lse(int64_t parts, Lse&& part_lse) {
  const S infinity = static_cast<S>(__builtin_inff());
  S top = -infinity;
  for (int64_t n = 0; n < parts; ++n) {
    const S l = part_lse(n);
    if (l > top || l != l) top = l;
  }
  if (top == -infinity) return top;
  S sum = 0;
  for (int64_t n = 0; n < parts; ++n) sum += std::exp(part_lse(n) - top);
  return top + std::log(sum);
}

// Weight of a part. -inf stands for "no key" on either side; exp(-inf - -inf) must not become NaN.
template <class S> ATTN_HD S part_weight(S part_lse, S lse) {
  return part_lse == -static_cast<S>(__builtin_inff()) ? S{0} : std::exp(part_lse - lse);
}

ATTN_NAMESPACE_END
