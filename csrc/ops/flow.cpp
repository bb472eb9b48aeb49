// Flow attention: every query facing every key, causal, and one causal token at a time.
#include <limits>

#include "attn/flow.h"
#include "ops/backend.h"
#include "ops/scan_args.h"
#include "ops/text.h"

namespace attn::ops {
namespace {

struct FlowOptions {
  double eps;
  bool eps_outside;
  std::optional<double> clamp;
  bool causal, head_softmax, source_norm;
  const OptionalTensor &query_mask, &key_mask, &cu_seqlens;
};

double clamp_or_off(const Check& check, const std::optional<double>& clamp) {
  check.require(!clamp || *clamp > 0, "clamp must be positive, or None for none, got ", clamp ? *clamp : 0);
  return clamp ? *clamp : std::numeric_limits<double>::infinity();
}

void check_eps(const Check& check, double eps) {
  check.require(eps >= 0 && eps < 1e30, "eps must be finite and >= 0, got ", eps);
}

FlowParams flow_params(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v, const FlowOptions& o) {
  FlowParams p{};
  set_query_key_value(check, p, q, k, v);
  check.require(!o.causal || p.tq == p.tk, "q and k must have the same number of tokens, got ", p.tq, " and ", p.tk);
  check_eps(check, o.eps);
  p.causal = o.causal;
  p.eps = o.eps;
  p.outside = o.eps_outside ? o.eps : 0;
  p.clamp = clamp_or_off(check, o.clamp);
  p.head_softmax = o.head_softmax;
  p.source_norm = o.source_norm;
  set_packed(check, p, o.cu_seqlens, p.tk, p.tq);
  p.query_mask = mask_argument(check, o.query_mask, o.causal ? "mask" : "query_mask", p.batch, p.tq);
  p.key_mask = mask_argument(check, o.key_mask, o.causal ? "mask" : "key_mask", p.batch, p.tk);
  return p;
}

bool head_softmax(const Check& check, const Text& competition) {
  check.require(competition == "source" || competition == "head", "competition must be 'source' or 'head', got '",
                competition.value, "'");
  return competition == "head";
}

bool empty(const FlowParams& p) { return p.batch == 0 || p.heads == 0 || p.dim_v == 0 || p.sequences == 0; }

// May a mask or packing leave rows that no kernel on a GPU writes?
bool may_drop(const Check& check, const FlowParams& p) {
  return check.on_cuda() && (p.query_mask.data || p.key_mask.data || p.cu);
}

void run_flow_forward(const Check& check, const FlowParams& p, const Tensor& q, Tensor& out) {
  if (may_drop(check, p)) torch::stable::zero_(out);
  const Scratch scratch(q, flow_scratch_on(check, p));
  flow_forward_on(check, p, scratch.floats());
}

// Statistics have places for every token; those that a mask or packing leaves free are zero.
Tensor statistics(const Check&, const FlowParams& p, const Tensor& q, int64_t kinds, int64_t tokens) {
  Tensor t = new_tensor(q, {p.batch, p.heads, kinds, tokens}, statistics_type(q));
  if (p.query_mask.data || p.key_mask.data || p.cu || empty(p)) torch::stable::zero_(t);
  return t;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flow_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                                double eps, bool eps_outside,
                                                                std::optional<double> clamp, const Text& competition,
                                                                bool source_norm, const OptionalTensor& query_mask,
                                                                const OptionalTensor& key_mask,
                                                                const OptionalTensor& cu_seqlens) {
  const Check check("flow_forward", q);
  FlowParams p = flow_params(check, q, k, v,
                             {eps, eps_outside, clamp, false, head_softmax(check, competition), source_norm, query_mask,
                              key_mask, cu_seqlens});
  check_flow_forward_on(check, p);
  const ScalarType type = statistics_type(q);
  Tensor out = new_in_order_of(q, p.dim_v);
  Tensor sinks = statistics(check, p, q, 2, p.tq), sources = statistics(check, p, q, 3, p.tk);
  Tensor sums = new_tensor(q, {p.sequences, p.heads, 4, p.dim}, type);
  Tensor product = new_tensor(q, {p.sequences, p.heads, p.dim, p.dim_v}, type);
  if (empty(p)) {
    torch::stable::zero_(out);
    torch::stable::zero_(sums);
    return {out, sinks, sources, sums, product};
  }
  p.out = check.view4(out);
  p.sinks = sinks.data_ptr();
  p.sources = sources.data_ptr();
  p.sums = sums.data_ptr();
  p.product = product.data_ptr();
  run_flow_forward(check, p, q, out);
  return {out, sinks, sources, sums, product};
}

std::tuple<Tensor, Tensor, Tensor> run_flow_backward(const Check& check, FlowParams& p, const Tensor& dout,
                                                     const Tensor& q, const Tensor& k, const Tensor& v,
                                                     const Tensor& out, const Tensor& sinks, const Tensor& sources) {
  p.out = result_view(check, out, "out", {p.batch, p.heads, p.tq, p.dim_v}, q);
  p.sinks = state_data(check, sinks, "sinks", {p.batch, p.heads, 2, p.tq}, "[B, H, 2, Tq]", q);
  p.sources = state_data(check, sources, "sources", {p.batch, p.heads, 3, p.tk}, "[B, H, 3, Tk]", q);
  FlowBackwardParams b{};
  b.dout = result_view(check, dout, "dout", {p.batch, p.heads, p.tq, p.dim_v}, q);
  b.forward = p;
  check_flow_backward_on(check, b);
  Tensor dq = new_in_order_of(q, p.dim), dk = new_in_order_of(k, p.dim), dv = new_in_order_of(v, p.dim_v);
  if (empty(p)) {
    for (Tensor* t : {&dq, &dk, &dv}) torch::stable::zero_(*t);
    return {dq, dk, dv};
  }
  const int64_t group = p.heads / p.heads_kv;
  const bool unwritten = may_drop(check, p) || (check.on_cuda() && (p.tq == 0 || p.tk == 0));
  const auto run = [&](Tensor& to_k, Tensor& to_v) {
    if (unwritten) {
      for (Tensor* t : {&dq, &to_k, &to_v}) torch::stable::zero_(*t);
    }
    b.dk = check.view4(to_k);
    b.dv = check.view4(to_v);
    const Scratch scratch(q, flow_backward_scratch_on(check, b));
    flow_backward_on(check, b, scratch.floats());
  };
  b.dq = check.view4(dq);
  if (group == 1) {
    run(dk, dv);
    return {dq, dk, dv};
  }
  Tensor dk_heads = new_tensor(q, {p.batch, p.heads, p.tk, p.dim}, q.scalar_type());
  Tensor dv_heads = new_tensor(q, {p.batch, p.heads, p.tk, p.dim_v}, q.scalar_type());
  run(dk_heads, dv_heads);
  sum_groups_on(check, {p.dtype, p.batch, p.heads_kv, group, p.tk, p.dim, b.dk, check.view4(dk)});
  sum_groups_on(check, {p.dtype, p.batch, p.heads_kv, group, p.tk, p.dim_v, b.dv, check.view4(dv)});
  return {dq, dk, dv};
}

std::tuple<Tensor, Tensor, Tensor> flow_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                 const Tensor& out, const Tensor& sinks, const Tensor& sources,
                                                 const Tensor& sums, const Tensor& product, double eps,
                                                 bool eps_outside, std::optional<double> clamp, const Text& competition,
                                                 bool source_norm, const OptionalTensor& query_mask,
                                                 const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  const Check check("flow_backward", q);
  FlowParams p = flow_params(check, q, k, v,
                             {eps, eps_outside, clamp, false, head_softmax(check, competition), source_norm, query_mask,
                              key_mask, cu_seqlens});
  p.sums = state_data(check, sums, "sums", {p.sequences, p.heads, 4, p.dim}, "[B, H, 4, D]", q);
  p.product = state_data(check, product, "product", {p.sequences, p.heads, p.dim, p.dim_v}, "[B, H, D, Dv]", q);
  return run_flow_backward(check, p, dout, q, k, v, out, sinks, sources);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> flow_causal_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, double eps, bool eps_outside, std::optional<double> clamp,
    const OptionalTensor& mask, const OptionalTensor& cu_seqlens, bool keep_state) {
  const Check check("flow_causal_forward", q);
  FlowParams p = flow_params(check, q, k, v, {eps, eps_outside, clamp, true, false, false, mask, mask, cu_seqlens});
  check_flow_forward_on(check, p);
  const ScalarType type = statistics_type(q);
  Tensor out = new_in_order_of(q, p.dim_v);
  Tensor sinks = statistics(check, p, q, 2, p.tq), sources = statistics(check, p, q, 3, p.tk);
  const auto state = [&](const std::vector<int64_t>& sizes) {
    Tensor t = keep_state ? new_tensor(q, sizes, type) : no_tensor(q, type);
    if (empty(p) || check.on_cuda()) torch::stable::zero_(t);  // kernels there skip sequences without tokens
    return t;
  };
  Tensor sums = state({p.sequences, p.heads, 4, p.dim}), product = state({p.sequences, p.heads, p.dim, p.dim_v});
  Tensor log_mean = state({p.sequences, p.heads}), tokens = state({p.sequences});
  if (empty(p)) {
    torch::stable::zero_(out);
    return {out, sinks, sources, sums, product, log_mean, tokens};
  }
  p.out = check.view4(out);
  p.sinks = sinks.data_ptr();
  p.sources = sources.data_ptr();
  if (keep_state) {
    p.sums = sums.data_ptr();
    p.product = product.data_ptr();
    p.log_mean = log_mean.data_ptr();
    p.tokens = tokens.data_ptr();
  }
  run_flow_forward(check, p, q, out);
  return {out, sinks, sources, sums, product, log_mean, tokens};
}

std::tuple<Tensor, Tensor, Tensor> flow_causal_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                        const Tensor& v, const Tensor& out, const Tensor& sinks,
                                                        const Tensor& sources, double eps, bool eps_outside,
                                                        std::optional<double> clamp, const OptionalTensor& mask,
                                                        const OptionalTensor& cu_seqlens) {
  const Check check("flow_causal_backward", q);
  FlowParams p = flow_params(check, q, k, v, {eps, eps_outside, clamp, true, false, false, mask, mask, cu_seqlens});
  return run_flow_backward(check, p, dout, q, k, v, out, sinks, sources);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flow_step(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             const OptionalTensor& sums, const OptionalTensor& product,
                                                             const OptionalTensor& log_mean,
                                                             const OptionalTensor& tokens, double eps,
                                                             std::optional<double> clamp) {
  const Check check("flow_step", q);
  FlowParams sizes{};
  set_query_key_value(check, sizes, q, k, v);
  check.require(sizes.tq == 1 && sizes.tk == 1, "q, k and v must hold one token, got ", sizes.tq, " and ", sizes.tk);
  check_eps(check, eps);
  const int64_t b = sizes.batch, h = sizes.heads, d = sizes.dim, dv = sizes.dim_v;
  const bool given = sums.has_value();
  check.require(product.has_value() == given && log_mean.has_value() == given && tokens.has_value() == given,
                "the parts of the state must be given together");
  FlowStepParams p{};
  p.before = {state_data(check, sums, "sums", {b, h, 4, d}, "[B, H, 4, D]", q),
              state_data(check, product, "product", {b, h, d, dv}, "[B, H, D, Dv]", q),
              state_data(check, log_mean, "log_mean", {b, h}, "[B, H]", q),
              state_data(check, tokens, "tokens", {b}, "[B]", q)};
  p.dtype = sizes.dtype;
  p.batch = b;
  p.heads = h;
  p.heads_kv = sizes.heads_kv;
  p.dim = d;
  p.dim_v = dv;
  p.eps = eps;
  p.clamp = clamp_or_off(check, clamp);
  check_flow_step_on(check, p);
  const ScalarType type = statistics_type(q);
  Tensor out = new_in_order_of(q, dv);
  Tensor new_sums = new_tensor(q, {b, h, 4, d}, type), new_product = new_tensor(q, {b, h, d, dv}, type);
  Tensor new_log_mean = new_tensor(q, {b, h}, type), new_tokens = new_tensor(q, {b}, type);
  if (b == 0 || h == 0) torch::stable::zero_(new_tokens);
  p.q = sizes.q;
  p.k = sizes.k;
  p.v = sizes.v;
  p.out = check.view4(out);
  p.after = {new_sums.data_ptr(), new_product.data_ptr(), new_log_mean.data_ptr(), new_tokens.data_ptr()};
  flow_step_on(check, p);
  return {out, new_sums, new_product, new_log_mean, new_tokens};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("flow_forward", TORCH_BOX(&flow_forward));
  m.impl("flow_backward", TORCH_BOX(&flow_backward));
  m.impl("flow_causal_forward", TORCH_BOX(&flow_causal_forward));
  m.impl("flow_causal_backward", TORCH_BOX(&flow_causal_backward));
  m.impl("flow_step", TORCH_BOX(&flow_step));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("flow_forward", TORCH_BOX(&flow_forward));
  m.impl("flow_backward", TORCH_BOX(&flow_backward));
  m.impl("flow_causal_forward", TORCH_BOX(&flow_causal_forward));
  m.impl("flow_causal_backward", TORCH_BOX(&flow_causal_backward));
  m.impl("flow_step", TORCH_BOX(&flow_step));
}

}  // namespace attn::ops
