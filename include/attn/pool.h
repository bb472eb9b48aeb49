// Pooling ops: arguments, and the rules both backends share (which tokens make up a segment, a window, a chunk).
// Tensors are [B, L, C] with contiguous channels; a packed batch is B = 1 with cu_seqlens. No sentinel value stands
// for a missing token anywhere: tokens that don't take part are skipped, and a reduction over nothing is 0.
#pragma once

#include "attn/types.h"

namespace attn {

enum class PoolReduce : int32_t { max, mean, sum, first, last };

// Which of several equal maxima is the maximum, as far as the gradient is concerned: the first one (max_pool1d,
// torch_scatter), or all of them in equal parts (amax, scatter_reduce).
enum class TieRule : int32_t { first, even };

// A [batch, token, channel] tensor whose last dimension is contiguous. Strides count elements.
struct TokenView {
  void* data;  // null: absent
  int64_t batch, token;
};

// The sequences of a call: the rows of a batch or, packed, the stretches between cu_seqlens (batch == 1; tokens past
// its last entry belong to no sequence).
struct Sequences {
  int64_t batch, tokens;
  const int32_t* cu;  // null, or [count + 1]: ascending, from 0, at most `tokens`
  int64_t count;      // number of sequences
};

// One sequence.
struct SequenceSpan {
  int64_t batch, first, length;  // its tokens are [first, first + length) of that batch entry
};

struct PonetParams {
  DType dtype;
  Sequences sequences;
  int64_t channels, heads;
  TokenView q;  // read unless `query` is given
  TokenView k, o, segment, local;
  const void* query;       // null, or [sequences, C] contiguous, float (double for f64)
  const int32_t* ids;      // null, or [B, L] contiguous: segment ids, ascending within each sequence
  int64_t segment_length;  // without ids: tokens a segment; 0 = the sequence is one segment
  int64_t window;          // odd
  MaskView mask, special;
  // Results, contiguous. The last three are float (double for f64).
  void* out;     // [B, L, C]
  void* pooled;  // [sequences, C]: the query of the global stage
  void* global;  // [sequences, C]: its result
  void* lse;     // [sequences, H]
};

struct PonetBackwardParams {
  PonetParams forward;  // with pooled, global, lse as the forward wrote them; query and q are not read
  TieRule tie;
  TokenView dout;
  // Contiguous, in the type of the inputs; null = not wanted.
  void *dq, *dk, *d_o, *dsegment, *dlocal;
  void* dquery;  // null, or [sequences, C], float (double for f64): gradient of the pooled query
};

struct SegmentPoolParams {
  DType dtype;
  int64_t batch, tokens, channels, segments;
  TokenView x;
  const int32_t* offsets;  // [B, segments + 1] contiguous: segment s of a batch entry is [offsets[s], offsets[s + 1])
  MaskView mask;
  PoolReduce reduce;
  void* out;  // [B, segments, C] contiguous
  // CPU only. Null, or of a maximum [B, segments, C] contiguous: the first token that has it, -1 where there is none
  // or where it is NaN. Given to backward, x is not read, and ties go to the first.
  int32_t* token;
};

struct SegmentPoolBackwardParams {
  SegmentPoolParams forward;  // out is not read, nor is x but for a maximum: null will do, with strides of 0
  TieRule tie;
  TokenView dout;  // [B, segments, C]
  void* dx;        // [B, L, C] contiguous
};

struct WindowPoolParams {
  DType dtype;
  Sequences sequences;
  int64_t channels;
  TokenView x;
  int64_t window, dilation;  // window odd
  bool mean;                 // else the maximum
  bool count_include_pad;    // mean: divide by `window`, not by the tokens there are
  MaskView mask;
  void* out;  // [B, L, C] contiguous
};

struct WindowPoolBackwardParams {
  WindowPoolParams forward;  // out is not read, nor is x for a mean: null will do, with strides of 0
  TokenView dout;
  void* dx;  // [B, L, C] contiguous
};

constexpr int kMaxDilations = 8;

struct TapPoolParams {
  DType dtype;
  int64_t batch, height, width, channels, scales;
  int32_t dilation[kMaxDilations];
  TokenView x;        // [B, height * width, C]
  TokenView weights;  // [B, height * width, scales], same type
  void* out;          // [B, height * width, C] contiguous
};

struct TapPoolBackwardParams {
  TapPoolParams forward;  // out is not read
  TokenView dout;
  void* dx;        // null or [B, height * width, C] contiguous
  void* dweights;  // null or [B, height * width, scales] contiguous
};

struct AxisGateParams {
  DType dtype;
  int64_t batch, channels, time;
  TokenView x;               // [B, C, T]
  const void* channel_gate;  // [B, C] contiguous, same type
  const void* time_gate;     // [B, T] contiguous, same type
  void* out;                 // [B, C, T] contiguous
};

struct AxisGateBackwardParams {
  AxisGateParams forward;  // out is not read
  TokenView dout;
  void *dx, *dchannel, *dtime;  // contiguous, same type; null = not wanted
};

enum class PoolActivation : int32_t {
  softmax_keys,     // A = softmax over the keys
  softmax_queries,  // A = softmax over the queries: each key divides one unit among them
  relu_mean,        // A = relu(x) / number of kept keys
};

struct QueryPoolParams {
  DType dtype;
  PoolActivation activation;
  Sequences sequences;  // of keys
  int64_t heads, heads_kv, queries, dim, dim_v;
  View4 q;  // [1 | sequences, H, M, D]; the batch stride is 0 for queries shared by all sequences
  View4 k;  // [B, Hkv, L, D]
  View4 v;  // [B, Hkv, L, Dv]
  double scale;
  MaskView mask;  // of keys
  void* out;      // [sequences, H, M, Dv] contiguous
  void* lse;      // softmax_keys: [sequences, H, M] contiguous, float (double for f64); else null
};

struct QueryPoolBackwardParams {
  QueryPoolParams forward;  // softmax_keys: with out and lse as the forward wrote them; else they aren't read
  View4 dout;               // [sequences, H, M, Dv]
  bool shared;              // q is one set of queries: dq sums over the sequences
  // In the type of the inputs; null = not wanted.
  void* dq;      // [1 | sequences, H, M, D] contiguous
  View4 dk, dv;  // [B, Hkv, L, D], [B, Hkv, L, Dv]
};

struct TopkNodesParams {
  DType dtype;
  int64_t nodes, graphs;
  const void* score;  // [nodes] contiguous
  const int32_t* cu;  // [graphs + 1]
  double ratio;       // > 0: keep that share of each graph
  int64_t k;          // else >= 0: keep at most so many
  bool by_score;      // else keep what min_score keeps
  double min_score;
  int64_t* perm;    // [nodes]: kept nodes, graph after graph; the rest is -1
  int32_t* new_cu;  // [graphs + 1]
};

}  // namespace attn

ATTN_NAMESPACE_BEGIN

ATTN_HD SequenceSpan sequence_span(const Sequences& s, int64_t index) {
  if (!s.cu) return {index, 0, s.tokens};
  return {0, s.cu[index], s.cu[index + 1] - s.cu[index]};
}

ATTN_HD bool taken(const MaskView& m, int64_t batch, int64_t token) {
  return !m.data || m.data[batch * m.batch + token * m.token] != 0;
}

// Segments of one sequence: by ids or by position. Bounds are positions within the sequence.
struct SegmentRule {
  const int32_t* ids;  // null, or the ids of the sequence's tokens, ascending
  int64_t segment_length, tokens;

  ATTN_HD int64_t begin(int64_t at) const {
    if (!ids) return segment_length > 0 ? at / segment_length * segment_length : 0;
    int64_t lo = 0, hi = at;  // the first token whose id is ids[at]
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (ids[mid] < ids[at]) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  }

  ATTN_HD int64_t end(int64_t at) const {
    if (!ids) {
      if (segment_length == 0) return tokens;
      const int64_t end = (at / segment_length + 1) * segment_length;
      return end < tokens ? end : tokens;
    }
    int64_t lo = at + 1, hi = tokens;  // the first token whose id is greater
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (ids[mid] <= ids[at]) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  }
};

ATTN_HD SegmentRule segment_rule(const PonetParams& p, const SequenceSpan& s) {
  return {p.ids ? p.ids + s.batch * p.sequences.tokens + s.first : nullptr, p.segment_length, s.length};
}

// Positions that a window covers: at - reach, ..., at + reach in steps of the dilation, cut to [0, length).
struct WindowBounds {
  int64_t first, last;  // both covered, first <= at <= last
};

ATTN_HD WindowBounds window_bounds(int64_t window, int64_t dilation, int64_t at, int64_t length) {
  const int64_t half = window / 2, after = length - 1 - at;
  // A division of int64 costs a GPU more than the rest of a row.
  const int64_t left = dilation == 1 ? at : at / dilation, right = dilation == 1 ? after : after / dilation;
  return {at - (half < left ? half : left) * dilation, at + (half < right ? half : right) * dilation};
}

// Nodes kept of a graph of n: ratio * n rounded up. The factor takes back the rounding of a decimal ratio, so that 0.1
// of 30 nodes are 3.
ATTN_HD int64_t nodes_kept(double ratio, int64_t n) {
  const double exact = ratio * static_cast<double>(n) * (1 - 1e-13);
  const int64_t down = static_cast<int64_t>(exact), up = down + (static_cast<double>(down) < exact);
  return up < n ? up : n;
}

ATTN_NAMESPACE_END

// The CPU backend. Every element of the results is written; tokens past the last sequence of a packed batch come out 0.
namespace attn::cpu {

void ponet_forward(const PonetParams& params);
void ponet_backward(const PonetBackwardParams& params);
void segment_pool_forward(const SegmentPoolParams& params);
void segment_pool_backward(const SegmentPoolBackwardParams& params);
void window_pool_forward(const WindowPoolParams& params);
void window_pool_backward(const WindowPoolBackwardParams& params);
void tap_pool_forward(const TapPoolParams& params);
void tap_pool_backward(const TapPoolBackwardParams& params);
void axis_gate_forward(const AxisGateParams& params);
void axis_gate_backward(const AxisGateBackwardParams& params);
void query_pool_forward(const QueryPoolParams& params);
void query_pool_backward(const QueryPoolBackwardParams& params);
void topk_nodes(const TopkNodesParams& params);

}  // namespace attn::cpu
