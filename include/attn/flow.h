// Arguments of the flow attention kernels, for every backend, and the rules between its scalars. Notation: sinks are
// queries, sources are keys; with sink_i = sigmoid(q_i), source_j = sigmoid(k_j),
//   incoming_i, outgoing_j     flow through a sink or source while nothing is conserved
//   conserved_i, conserved_j   the same once the other side passes on exactly 1 (causal: t at position t)
//   out_i = sigmoid(conserved_i) sink_i / incoming_i . sum_j source_j (x) (weight_j v_j)
// where weight_j is the sources' softmax of conserved_j times their number.
#pragma once

#include <cmath>
#include <limits>

#include "attn/scan.h"

namespace attn {

struct FlowParams {
  DType dtype;
  int64_t batch, heads, heads_kv, tq, tk, dim, dim_v;
  bool causal;          // then tq == tk and the masks are one
  double eps, outside;  // eps: added to every component of either factor of a dot; outside: to the dot
  double clamp;         // conserved flow of sources is cut to [-clamp, clamp]; infinity = not at all
  bool head_softmax;    // sources compete over heads, not over tokens (not causal)
  bool source_norm;     // conserved flow of sources times keys / queries (not causal)
  View4 q, k, v, out;
  MaskView query_mask, key_mask;
  const int32_t* cu;  // null, or [sequences + 1]: packed sequences of q and k alike, batch == 1
  int64_t sequences;  // batch without cu
  // Statistics in the accumulation type, contiguous. Tokens that a mask drops take no place: entry i of a sequence is
  // its i-th kept token.
  void* sinks;    // [B, H, 2, Tq]: incoming, conserved
  void* sources;  // [B, H, 3, Tk]: outgoing, conserved (not cut), weight
  // Sums over all tokens, null where not wanted (causal only): [sequences, H, 4, D] of source, sink, source / outgoing,
  // sink / incoming (causal: times t); [sequences, H, D, Dv] of source_j (x) weight_j v_j; and, causal only, the log of
  // the mean of exp(conserved_j), [sequences, H], and the number of tokens, [sequences].
  void *sums, *product, *log_mean, *tokens;
};

struct FlowBackwardParams {
  FlowParams forward;  // out and statistics as the forward returned them
  View4 dout;
  View4 dq;      // [B, H, Tq, D]
  View4 dk, dv;  // per query head: [B, H, Tk, .]
};

// One token of the causal form. The state in the accumulation type, contiguous, is read from one set of pointers and
// written to another.
struct FlowStepParams {
  DType dtype;
  int64_t batch, heads, heads_kv, dim, dim_v;
  double eps, clamp;
  View4 q, k, v, out;  // one token each
  struct State {
    void *sums, *product, *log_mean;  // [B, H, 4, D], [B, H, D, Dv], [B, H], as in FlowParams
    void* tokens;                     // [B]
  } before, after;                    // before.sums == nullptr: no token yet
};

namespace cpu {

void flow_forward(const FlowParams& params);
void flow_backward(const FlowBackwardParams& params);
void flow_step(const FlowStepParams& params);

}  // namespace cpu
}  // namespace attn

ATTN_NAMESPACE_BEGIN

template <class A> ATTN_HD A logistic(A x) { return 1 / (1 + std::exp(-x)); }

// Conserved flow of a source as it competes; a NaN stays one.
template <class A> ATTN_HD A cut_flow(A x, A clamp) { return x > clamp ? clamp : x < -clamp ? -clamp : x; }

// The slope of cut_flow, 1 at the bounds as in torch.clamp.
template <class A> ATTN_HD A cut_slope(A x, A clamp) { return x > clamp || x < -clamp ? A{0} : A{1}; }

// Maximum and sum of exp(x - maximum), kept in double: the sum may run over millions of tokens.
struct SoftmaxSum { double top, sum; };

ATTN_HD SoftmaxSum merge_sums(SoftmaxSum a, SoftmaxSum b) {
  if (a.sum == 0) return b;
  if (b.sum == 0) return a;
  const double top = a.top > b.top ? a.top : b.top;
  return {top, a.sum * std::exp(a.top - top) + b.sum * std::exp(b.top - top)};
}

// Gradient of the conserved flows of the causal form: sum_{u >= t} d weight_u ... / Z_u obeys
// carry_{t-1} = (1 - weight_t / t) (dweight_t weight_t + carry_t), which over a stretch of tokens is a line in carry.
struct Line {
  double slope, offset;
  ATTN_HD double at(double x) const { return slope * x + offset; }
};

ATTN_NAMESPACE_END
