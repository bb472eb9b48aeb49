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
#define ATTN_QKV_GRADS "(Tensor dq, Tensor dk, Tensor dv)"
#define ATTN_LAYOUT                                                                                  \
  "Tensor kv_count, Tensor kv_index, Tensor? full_count, Tensor? full_index, Tensor? partial_slot, " \
  "Tensor? partial_bits, SymInt block_q, SymInt block_k, "
#define ATTN_S2                                                                               \
  "SymInt block_size=64, SymInt local_blocks=8, SymInt vert_stride=8, SymInt head_offset=0, " \
  "SymInt? head_step=None, SymInt dense_heads=0, bool homogeneous=False, bool causal=True, float? scale=None"
#define ATTN_HIP_SELECTED                                                                                  \
  "Tensor index, Tensor count, SymInt block_size_q=64, SymInt block_size_k=2, SymInt sliding_window=256, " \
  "SymInt sink_tokens=16, bool causal=True, float? scale=None"
// A mask of the causal form drops a token as query and as key.
#define ATTN_FLOW                                                                                                \
  "float eps=1e-6, bool eps_outside=False, float? clamp=1.0, str competition='source', bool source_norm=False, " \
  "Tensor? query_mask=None, Tensor? key_mask=None, Tensor? cu_seqlens=None"
#define ATTN_FLOW_CAUSAL \
  "float eps=1e-6, bool eps_outside=False, float? clamp=1.0, Tensor? mask=None, Tensor? cu_seqlens=None"
#define ATTN_LINEAR                                                                                         \
  "str feature_map='elu1', bool causal=False, bool normalize=True, float eps=1e-6, Tensor? key_mask=None, " \
  "Tensor? cu_seqlens=None, Tensor? initial_s=None, Tensor? initial_z=None"

// PoNet's options; `wanted` gradients are those of q, k, o, segment, local, pooled_query.
#define ATTN_PONET                                                                                            \
  "SymInt num_heads, Tensor? segment_ids=None, SymInt segment_length=0, SymInt window=3, Tensor? mask=None, " \
  "Tensor? special_mask=None, Tensor? cu_seqlens=None"
#define ATTN_QUERY_POOL \
  "float? scale=None, Tensor? cu_seqlens=None, Tensor? key_mask=None, str activation='softmax', str axis='keys'"
#define ATTN_SEGMENT "Tensor? segment_ids, Tensor? cu_seqlens, SymInt num_segments, str reduce='max', Tensor? mask=None"
#define ATTN_WINDOW                                                                                  \
  "SymInt window, str reduce='max', SymInt dilation=1, Tensor? mask=None, Tensor? cu_seqlens=None, " \
  "bool count_include_pad=False"

STABLE_TORCH_LIBRARY(attn, m) {
  m.def("attend_forward(Tensor q, Tensor k, Tensor v, " ATTN_RULE ATTN_PACKED ATTN_SINK_GATE
        ", bool skip_gated=False) -> (Tensor out, Tensor lse)");
  m.def("attend_backward(" ATTN_SAVED ATTN_RULE ATTN_PACKED ATTN_SINK_GATE ") -> " ATTN_GRADS);
  m.def("block_sparse_backward(" ATTN_SAVED ATTN_LAYOUT ATTN_RULE ATTN_SINK_GATE ") -> " ATTN_GRADS);
  m.def("block_sparse_forward(Tensor q, Tensor k, Tensor v, " ATTN_LAYOUT ATTN_RULE ATTN_SINK_GATE
        ", bool skip_gated=False) -> (Tensor out, Tensor lse)");
  m.def(
      "decode_forward(Tensor q, Tensor k_cache, Tensor v_cache, Tensor seqlens, Tensor? block_table=None, "
      "Tensor? kv_count=None, Tensor? kv_index=None, Tensor? full_count=None, Tensor? full_index=None, "
      "Tensor? partial_slot=None, Tensor? partial_bits=None, SymInt block_q=0, SymInt block_k=0, "
      "SymInt layout_keys=-1, SymInt window_left=-1, SymInt window_right=-1, SymInt sink_tokens=0, "
      "float? scale=None, Tensor? key_log_weight=None) -> (Tensor out, Tensor lse)");
  m.def(
      "flow_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor sinks, Tensor sources, Tensor sums, "
      "Tensor product, " ATTN_FLOW ") -> " ATTN_QKV_GRADS);
  m.def(
      "flow_causal_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor sinks, Tensor "
      "sources, " ATTN_FLOW_CAUSAL ") -> " ATTN_QKV_GRADS);
  m.def("flow_causal_forward(Tensor q, Tensor k, Tensor v, " ATTN_FLOW_CAUSAL
        ", bool keep_state=False) -> (Tensor out, Tensor sinks, Tensor sources, Tensor sums, Tensor product, "
        "Tensor log_mean, Tensor tokens)");
  m.def("flow_forward(Tensor q, Tensor k, Tensor v, " ATTN_FLOW
        ") -> (Tensor out, Tensor sinks, Tensor sources, Tensor sums, Tensor product)");
  m.def(
      "flow_step(Tensor q, Tensor k, Tensor v, Tensor? sums=None, Tensor? product=None, Tensor? log_mean=None, "
      "Tensor? tokens=None, float eps=1e-6, float? clamp=1.0)"
      " -> (Tensor out, Tensor sums, Tensor product, Tensor log_mean, Tensor tokens)");
  m.def("hip_attend(Tensor q, Tensor k, Tensor v, " ATTN_HIP_SELECTED ") -> (Tensor out, Tensor lse)");
  m.def("hip_backward(" ATTN_SAVED ATTN_HIP_SELECTED ") -> " ATTN_QKV_GRADS);
  m.def(
      "hip_forward(Tensor q, Tensor k, Tensor v, SymInt mask_k=512, SymInt block_size_q=64, SymInt block_size_k=2, "
      "SymInt block_stride_q=2, SymInt sliding_window=256, SymInt sink_tokens=16, str representative='center', "
      "str reduce_heads='none', bool causal=True, float? scale=None)"
      " -> (Tensor out, Tensor lse, Tensor index, Tensor count)");
  m.def(
      "hip_select(Tensor q, Tensor k, SymInt mask_k=512, SymInt block_size_q=64, SymInt block_size_k=2, "
      "SymInt block_stride_q=2, SymInt sliding_window=256, str representative='center', str reduce_heads='none', "
      "bool causal=True) -> (Tensor index, Tensor count)");
  m.def("layout_build(Tensor mask) -> (Tensor count, Tensor index)");
  m.def("layout_transpose(" ATTN_LAYOUT
        "SymInt columns) -> (Tensor kv_count, Tensor kv_index, Tensor full_count, Tensor full_index, "
        "Tensor partial_slot, Tensor partial_bits)");
  m.def(
      "linear_backward(Tensor dout, Tensor? ds, Tensor? dz, Tensor q, Tensor k, Tensor v, Tensor? out, Tensor mass, "
      "Tensor? s, Tensor? z, " ATTN_LINEAR ") -> (Tensor dq, Tensor dk, Tensor dv, Tensor ds0, Tensor dz0)");
  m.def("linear_forward(Tensor q, Tensor k, Tensor v, " ATTN_LINEAR
        ", bool keep_state=False) -> (Tensor out, Tensor mass, Tensor s, Tensor z)");
  m.def("merge_states(Tensor outs, Tensor lses) -> (Tensor out, Tensor lse)");
  m.def(
      "merge_states_backward(Tensor dout, Tensor? dlse, Tensor outs, Tensor lses, Tensor lse)"
      " -> (Tensor douts, Tensor dlses)");
  m.def(
      "axis_gate_backward(Tensor dout, Tensor x, Tensor channel, Tensor time, bool[] wanted)"
      " -> (Tensor dx, Tensor dchannel, Tensor dtime)");
  m.def("axis_gate_forward(Tensor x, Tensor channel, Tensor time) -> Tensor");
  m.def(
      "ponet_backward(Tensor dout, Tensor k, Tensor o, Tensor segment, Tensor local, Tensor query, Tensor aggregate, "
      "Tensor lse, bool[] wanted, " ATTN_PONET
      ", str tie='first')"
      " -> (Tensor dq, Tensor dk, Tensor do, Tensor dsegment, Tensor dlocal, Tensor dpooled_query)");
  m.def("ponet_forward(Tensor? q, Tensor k, Tensor o, Tensor segment, Tensor local, Tensor? pooled_query, " ATTN_PONET
        ") -> (Tensor out, Tensor query, Tensor aggregate, Tensor lse)");
  m.def(
      "prefix_pool_backward(Tensor dout, Tensor? dlse, Tensor score, Tensor v, Tensor out, Tensor lse, "
      "Tensor? cu_seqlens=None) -> (Tensor dscore, Tensor dv)");
  m.def("prefix_pool_forward(Tensor score, Tensor v, Tensor? cu_seqlens=None) -> (Tensor out, Tensor lse)");
  m.def("query_pool_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? out, Tensor lse, bool[] wanted, "  //
        ATTN_QUERY_POOL ") -> " ATTN_QKV_GRADS);
  m.def("query_pool_forward(Tensor q, Tensor k, Tensor v, " ATTN_QUERY_POOL ") -> (Tensor out, Tensor lse)");
  m.def("s2_backward(" ATTN_SAVED ATTN_S2 ") -> " ATTN_QKV_GRADS);
  m.def("s2_forward(Tensor q, Tensor k, Tensor v, " ATTN_S2 ") -> (Tensor out, Tensor lse)");
  m.def(
      "segment_max_forward(Tensor x, Tensor? segment_ids, Tensor? cu_seqlens, SymInt num_segments, Tensor? mask=None)"
      " -> (Tensor out, Tensor token)");
  m.def("segment_pool_backward(Tensor dout, Tensor? x, " ATTN_SEGMENT
        ", str tie='first', Tensor? token=None, SymInt tokens=-1) -> Tensor");
  m.def("segment_pool_forward(Tensor x, " ATTN_SEGMENT ") -> Tensor");
  m.def(
      "tap_pool_backward(Tensor dout, Tensor x, Tensor weights, bool[] wanted, SymInt height, SymInt width, "
      "SymInt[] dilations) -> (Tensor dx, Tensor dweights)");
  m.def("tap_pool_forward(Tensor x, Tensor weights, SymInt height, SymInt width, SymInt[] dilations) -> Tensor");
  m.def(
      "topk_nodes(Tensor score, Tensor cu_seqlens, float? ratio=None, SymInt? k=None, float? min_score=None)"
      " -> (Tensor perm, Tensor new_cu_seqlens)");
  m.def("window_pool_backward(Tensor dout, Tensor? x, " ATTN_WINDOW ") -> Tensor");
  m.def("window_pool_forward(Tensor x, " ATTN_WINDOW ") -> Tensor");
}
