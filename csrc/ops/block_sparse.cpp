// Attention to the blocks of a BlockLayout.
#include "ops/layout_args.h"

namespace attn::ops {
namespace {

std::tuple<Tensor, Tensor> block_sparse_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv_count, const Tensor& kv_index,
    const OptionalTensor& full_count, const OptionalTensor& full_index, const OptionalTensor& partial_slot,
    const OptionalTensor& partial_bits, int64_t block_q, int64_t block_k, bool causal, int64_t window_left,
    int64_t window_right, int64_t sink_tokens, std::optional<double> scale, double softcap,
    const OptionalTensor& key_log_weight, const OptionalTensor& segment_q, const OptionalTensor& segment_k,
    const OptionalTensor& sink_logits, const OptionalTensor& head_gate, bool skip_gated) {
  const Check check("block_sparse_forward", q);
  const OptionalTensor& none = AttendOptions::none;
  AttendParams p = attend_params(check, q, k, v,
                                 {causal, window_left, window_right, sink_tokens, scale, softcap, key_log_weight,
                                  segment_q, segment_k, none, none, sink_logits, head_gate, skip_gated});
  set_layout(check, {kv_count, kv_index, full_count, full_index, partial_slot, partial_bits, block_q, block_k}, p);
  return run_forward(check, p, q);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_sparse_backward(
    const Tensor& dout, const OptionalTensor& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out, const Tensor& lse, const std::vector<bool>& wanted, const Tensor& kv_count,
    const Tensor& kv_index, const OptionalTensor& full_count, const OptionalTensor& full_index,
    const OptionalTensor& partial_slot, const OptionalTensor& partial_bits, int64_t block_q, int64_t block_k,
    bool causal, int64_t window_left, int64_t window_right, int64_t sink_tokens, std::optional<double> scale,
    double softcap, const OptionalTensor& key_log_weight, const OptionalTensor& segment_q,
    const OptionalTensor& segment_k, const OptionalTensor& sink_logits, const OptionalTensor& head_gate) {
  const Check check("block_sparse_backward", q);
  const OptionalTensor& none = AttendOptions::none;
  AttendParams p = attend_params(check, q, k, v,
                                 {causal, window_left, window_right, sink_tokens, scale, softcap, key_log_weight,
                                  segment_q, segment_k, none, none, sink_logits, head_gate, false});
  set_layout(check, {kv_count, kv_index, full_count, full_index, partial_slot, partial_bits, block_q, block_k}, p);
  return std::tuple_cat(run_backward(check, p, {dout, dlse, q, k, v, out, lse}, wanted));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("block_sparse_forward", TORCH_BOX(&block_sparse_forward));
  m.impl("block_sparse_backward", TORCH_BOX(&block_sparse_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("block_sparse_forward", TORCH_BOX(&block_sparse_forward));
  m.impl("block_sparse_backward", TORCH_BOX(&block_sparse_backward));
}

}  // namespace attn::ops
