// Arguments of the kernels that linear attention is made of.
#pragma once

#include "attn/feature_map.h"
#include "cuda/scan_chunks.h"

namespace attn::cuda {

// Rows as operands of a product.
struct ScanRows {
  View4 x;
  int64_t elements, dim;  // of a row of x; of the operand, which taylor2 has more of
  FeatureMap map;         // identity: as they are
  MaskView keep;          // rows that aren't kept count as zeros and are not read
  const float* scale;     // null, or [B, heads, tokens]: what the mapped row is multiplied by
  int64_t heads, tokens;
};

// See sm80/segment_sums.h.
struct SegmentSumsParams {
  ScanChunks segments;
  ScanRows b, c;
  // Heads of the states; of each, `group` heads of b and c one after another.
  int64_t heads, group;
  bool weighted;        // without it there is no sum of b_j alone
  const float* weight;  // null: 1; or [B, heads * group, tokens]
  float *s, *z;         // [slots, heads, b.dim, c.dim], [slots, heads, b.dim]
};

// States of every segment or sequence, contiguous: [.., heads, inner, outer] and [.., heads, inner or outer].
struct StateView {
  const float *s, *z;
  int64_t heads;
  bool by_segment;  // otherwise by sequence
  bool transposed;  // s is [outer, inner]
  int64_t outer;
};

enum class StateTerm : int32_t {
  none,
  mass,  // z takes part in the mass
  row,   // u_i z
  one,   // z
};

// What a token counts for, given a product p = a_i . b_j of rows of features or, with taylor2, of the tensors' own.
enum class TokenWeight : int32_t {
  product,  // p + u_i + w_j
  taylor2,  // 1 + y + y^2 / 2 with y = p / sqrt(D)
  slope,    // of taylor2: (p + u_i + w_j) (1 + y) / sqrt(D), where y is of a product of its own
};

// See sm80/scan_product.h.
struct ScanProductParams {
  ScanChunks segments;  // of out's rows: whole tiles
  int64_t heads;        // of out
  // Heads of b and c: heads / share of them, or share for each of a.
  int64_t share;
  bool many;     // the latter
  bool inside;   // tokens of the row's own segment are seen up to the row; otherwise there is only the state
  bool reverse;  // from the row on
  ScanRows a, b, c;
  ScanRows inside_a;  // in place of a for tokens
  TokenWeight weight;
  ScanRows slope_a, slope_b;  // of y, if weight is slope
  float inverse_root;         // 1 / sqrt(D)
  StateView state;
  StateTerm term;
  const float *row_term, *token_term;  // null, or [B, heads, tokens]
  // What becomes of out: divided by the mass, or multiplied by the slope of a feature map at the rows of `at`; rows
  // that aren't kept are zeros.
  bool normalize;
  double eps;
  float* mass;  // null, or [B, heads, tokens]: mass +- eps
  ScanRows at;  // at.x.data may be null
  View4 out;
  int64_t tokens;  // of row_term, mass
};

// See smxx/linear_delta.h.
struct LinearDeltaParams {
  int64_t batch, heads, tokens, dim;
  View4 out, dout;
  const float* mass;          // [B, H, Tq]
  float *factor, *mass_term;  // [B, H, Tq]: 1 / mass (0 where that is 0), dmass
};

}  // namespace attn::cuda
