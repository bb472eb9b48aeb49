// Table of contents: the schema of every op. Implementations register themselves in <op>.cpp; fake implementations are
// in python/attn/_fake.py. Arguments are positional, results fixed in number, fully initialised and never aliases.
#include <torch/csrc/stable/library.h>

// Options of the attend family, in the order of csrc/ops/attend_args.h.
#define ATTN_RULE                                                                                               \
  "bool causal=False, SymInt window_left=-1, SymInt window_right=-1, SymInt sink_tokens=0, float? scale=None, " \
  "float softcap=0.0, Tensor? key_log_weight=None, Tensor? segment_q=None, Tensor? segment_k=None, "
#define ATTN_PACKED "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
#define ATTN_SINK_GATE "Tensor? sink_logits=None, Tensor? head_gate=None"
// What a backward op starts with. `wanted`: which gradients to compute, in the order of the results; one that isn't
// wanted has no elements.
#define ATTN_SAVED "Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool[] wanted, "
#define ATTN_GRADS "(Tensor dq, Tensor dk, Tensor dv, Tensor dkey_log_weight, Tensor dsink_logits, Tensor dhead_gate)"

STABLE_TORCH_LIBRARY(attn, m) {
  m.def("attend_forward(Tensor q, Tensor k, Tensor v, " ATTN_RULE ATTN_PACKED ATTN_SINK_GATE
        ", bool skip_gated=False) -> (Tensor out, Tensor lse)");
  m.def("attend_backward(" ATTN_SAVED ATTN_RULE ATTN_PACKED ATTN_SINK_GATE ") -> " ATTN_GRADS);
  m.def("merge_states(Tensor outs, Tensor lses) -> (Tensor out, Tensor lse)");
  m.def(
      "merge_states_backward(Tensor dout, Tensor? dlse, Tensor outs, Tensor lses, Tensor lse)"
      " -> (Tensor douts, Tensor dlses)");
}
