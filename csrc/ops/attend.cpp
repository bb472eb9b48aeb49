// Attention over every key the flags let through.
#include "ops/attend_args.h"

namespace attn::ops {
namespace {

std::tuple<Tensor, Tensor> attend_forward(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                                          int64_t window_left, int64_t window_right, int64_t sink_tokens,
                                          std::optional<double> scale, double softcap,
                                          const OptionalTensor& key_log_weight, const OptionalTensor& segment_q,
                                          const OptionalTensor& segment_k, const OptionalTensor& cu_seqlens_q,
                                          const OptionalTensor& cu_seqlens_k, const OptionalTensor& sink_logits,
                                          const OptionalTensor& head_gate, bool skip_gated) {
  const Check check("attend_forward", q);
  AttendParams p =
      attend_params(check, q, k, v,
                    {causal, window_left, window_right, sink_tokens, scale, softcap, key_log_weight, segment_q,
                     segment_k, cu_seqlens_q, cu_seqlens_k, sink_logits, head_gate, skip_gated});
  return run_forward(check, p, q);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attend_backward(
    const Tensor& dout, const OptionalTensor& dlse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out, const Tensor& lse, const std::vector<bool>& wanted, bool causal, int64_t window_left,
    int64_t window_right, int64_t sink_tokens, std::optional<double> scale, double softcap,
    const OptionalTensor& key_log_weight, const OptionalTensor& segment_q, const OptionalTensor& segment_k,
    const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k, const OptionalTensor& sink_logits,
    const OptionalTensor& head_gate) {
  const Check check("attend_backward", q);
  AttendParams p = attend_params(check, q, k, v,
                                 {causal, window_left, window_right, sink_tokens, scale, softcap, key_log_weight,
                                  segment_q, segment_k, cu_seqlens_q, cu_seqlens_k, sink_logits, head_gate, false});
  return std::tuple_cat(run_backward(check, p, {dout, dlse, q, k, v, out, lse}, wanted));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("attend_forward", TORCH_BOX(&attend_forward));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("attend_forward", TORCH_BOX(&attend_forward));
  m.impl("attend_backward", TORCH_BOX(&attend_backward));
}

}  // namespace attn::ops
