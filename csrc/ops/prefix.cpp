// Prefix-softmax pooling.
#include <limits>

#include "ops/backend.h"
#include "ops/scan_args.h"

namespace attn::ops {
namespace {

PrefixPoolParams prefix_params(const Check& check, const Tensor& score, const Tensor& v, const OptionalTensor& cu) {
  PrefixPoolParams p{};
  p.dtype = check.floating(v, "v");
  check.rank(v, "v", 4, "[B, Hv, T, Dv]");
  check.on_device(score, "score");
  check.same_type(score, "score", v, "v");
  check.rank(score, "score", 3, "[B, H, T]");
  p.batch = v.size(0);
  p.heads = score.size(1);
  p.heads_v = v.size(1);
  p.tokens = v.size(2);
  p.dim = v.size(3);
  check.length(p.tokens, "the number of tokens");
  check.require(score.size(0) == p.batch && score.size(2) == p.tokens,
                "score must be [B, H, T] with the batch size and tokens of v ", shape_text(v), ", got shape ",
                shape_text(score));
  check.require(p.heads_v > 0 ? p.heads % p.heads_v == 0 : p.heads == 0, "the number of heads of score (", p.heads,
                ") must be a multiple of that of v (", p.heads_v, ")");
  check.nonnegative_strides(score, "score");
  check.last_contiguous(v, "v");
  set_packed(check, p, cu, p.tokens, p.tokens);
  p.score = check.view3(score);
  p.v = check.view4(v);
  return p;
}

bool empty(const PrefixPoolParams& p) { return p.batch == 0 || p.heads == 0; }

std::tuple<Tensor, Tensor> prefix_pool_forward(const Tensor& score, const Tensor& v, const OptionalTensor& cu_seqlens) {
  const Check check("prefix_pool_forward", v);
  PrefixPoolParams p = prefix_params(check, score, v, cu_seqlens);
  check_prefix_pool_forward_on(check, p);
  Tensor out = p.heads == p.heads_v ? new_in_order_of(v, p.dim)
                                    : new_tensor(v, {p.batch, p.heads, p.tokens, p.dim}, v.scalar_type());
  Tensor lse = new_tensor(v, {p.batch, p.heads, p.tokens}, statistics_type(v));
  if (empty(p)) return {out, lse};
  if (rows_unwritten(check, p)) {
    torch::stable::zero_(out);
    torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  }
  p.out = check.view4(out);
  p.lse = lse.data_ptr();
  const Scratch scratch(v, prefix_pool_scratch_on(check, p));
  prefix_pool_forward_on(check, p, scratch.floats());
  return {out, lse};
}

std::tuple<Tensor, Tensor> prefix_pool_backward(const Tensor& dout, const OptionalTensor& dlse, const Tensor& score,
                                                const Tensor& v, const Tensor& out, const Tensor& lse,
                                                const OptionalTensor& cu_seqlens) {
  const Check check("prefix_pool_backward", v);
  PrefixPoolParams p = prefix_params(check, score, v, cu_seqlens);
  const std::vector<int64_t> sizes = {p.batch, p.heads, p.tokens, p.dim};
  p.out = result_view(check, out, "out", sizes, v);
  p.lse = state_data(check, lse, "lse", {p.batch, p.heads, p.tokens}, "[B, H, T]", v);
  PrefixPoolBackwardParams b{};
  b.dout = result_view(check, dout, "dout", sizes, v);
  b.dlse = state_data(check, dlse, "dlse", {p.batch, p.heads, p.tokens}, "[B, H, T]", v);
  b.forward = p;
  check_prefix_pool_backward_on(check, b);
  Tensor dscore = new_tensor(v, {p.batch, p.heads, p.tokens}, v.scalar_type());
  Tensor dv = new_in_order_of(v, p.dim);
  if (empty(p)) return {dscore, dv};
  const bool grouped = p.heads != p.heads_v;
  Tensor dv_heads = grouped ? new_tensor(v, sizes, v.scalar_type()) : dv;
  if (rows_unwritten(check, p)) {
    for (Tensor* t : {&dscore, &dv_heads}) torch::stable::zero_(*t);
  }
  b.dscore = dscore.data_ptr();
  b.dv = check.view4(dv_heads);
  const Scratch scratch(v, prefix_pool_backward_scratch_on(check, b));
  prefix_pool_backward_on(check, b, scratch.floats());
  if (grouped) {
    sum_groups_on(check, {p.dtype, p.batch, p.heads_v, p.heads / p.heads_v, p.tokens, p.dim, b.dv, check.view4(dv)});
  }
  return {dscore, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("prefix_pool_forward", TORCH_BOX(&prefix_pool_forward));
  m.impl("prefix_pool_backward", TORCH_BOX(&prefix_pool_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("prefix_pool_forward", TORCH_BOX(&prefix_pool_forward));
  m.impl("prefix_pool_backward", TORCH_BOX(&prefix_pool_backward));
}

}  // namespace attn::ops
