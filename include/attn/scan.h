// Arguments of the scan kernels, for every backend: plain data, no torch. Pointers are never null and sizes >= 0 unless
// a field says otherwise. "Accumulation type": float32, float64 for f64 tensors.
#pragma once

#include "attn/feature_map.h"
#include "attn/types.h"

namespace attn {

// Tokens of a long scan are cut into segments, which run in parallel once the state before each is known.
constexpr int64_t kSegmentTokens = 256;

// Tokens a segment, so that the states kept (`state` elements each) take no more memory than a quarter of the tokens
// themselves (`row` elements each). Depends on shapes only.
inline int64_t segment_tokens(int64_t state, int64_t row) {
  int64_t tokens = kSegmentTokens;
  while (tokens * row < 4 * state && tokens < (int64_t{1} << 20)) tokens *= 2;
  return tokens;
}

struct LinearParams {
  DType dtype;
  int64_t batch, heads, heads_kv, tq, tk, dim, dim_v;
  FeatureMap map;
  bool causal;     // then tq == tk
  bool normalize;  // out = numerator / (mass +- eps), eps taken away from zero; 0 where that is 0
  double eps;
  View4 q, k, v, out;
  MaskView key_mask;
  const int32_t* cu;  // null, or [sequences + 1]: packed sequences of q and k alike, batch == 1
  int64_t sequences;  // batch without cu
  // States in the accumulation type, contiguous: s [sequences, Hkv, F, Dv], z [sequences, Hkv, F].
  const void *s0, *z0;  // null: zeros
  void *s, *z;          // after the last key
  void* mass;           // null, or [B, H, Tq] contiguous, accumulation type: mass +- eps of every row
};

struct LinearBackwardParams {
  LinearParams forward;  // out, s, z, mass as the forward returned them
  View4 dout;
  const void *ds, *dz;  // null, or shaped like s and z
  View4 dq, dk, dv;
  void *ds0, *dz0;  // both null, or shaped like s and z
};

struct PrefixPoolParams {
  DType dtype;
  int64_t batch, heads, heads_v, tokens, dim;
  View3 score;  // in dtype
  View4 v, out;
  void* lse;  // [B, H, T] contiguous, accumulation type
  const int32_t* cu;
  int64_t sequences;
};

struct PrefixPoolBackwardParams {
  PrefixPoolParams forward;  // out, lse as the forward returned them
  View4 dout;
  const void* dlse;  // null or [B, H, T] contiguous
  void* dscore;      // [B, H, T] contiguous, in dtype
  View4 dv;          // per query head: [B, H, T, D]
};

// out [B, Hkv, T, dim] = sum of x [B, Hkv * group, T, dim] over the heads of each group, in their order.
struct SumGroupsParams {
  DType dtype;
  int64_t batch, heads_kv, group, tokens, dim;
  View4 x, out;
};

namespace cpu {

void sum_groups(const SumGroupsParams& params);

void linear_forward(const LinearParams& params);
void linear_backward(const LinearBackwardParams& params);
void prefix_pool_forward(const PrefixPoolParams& params);
void prefix_pool_backward(const PrefixPoolBackwardParams& params);

}  // namespace cpu
}  // namespace attn
