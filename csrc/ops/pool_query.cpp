// Pooling of keys and values by a few queries.
#include <cmath>
#include <limits>

#include "ops/attend_args.h"
#include "ops/backend.h"
#include "ops/pool_args.h"

namespace attn::ops {
namespace {

struct QueryPoolOptions {
  std::optional<double> scale;
  const OptionalTensor &cu_seqlens, &key_mask;
  const Text &activation, &axis;
};

View4 head_view(const Check& check, const Tensor& t, const char* name, const char* layout) {
  check.on_device(t, name);
  check.rank(t, name, 4, layout);
  check.last_contiguous(t, name);
  return check.view4(t);
}

QueryPoolParams arguments(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v,
                          const QueryPoolOptions& o) {
  QueryPoolParams p{};
  p.dtype = check.floating(q, "q");
  p.q = head_view(check, q, "q", "[1 or sequences, H, M, D]");
  p.k = head_view(check, k, "k", "[B, Hkv, L, D]");
  p.v = head_view(check, v, "v", "[B, Hkv, L, Dv]");
  check.same_type(k, "k", q, "q");
  check.same_type(v, "v", q, "q");
  p.heads = q.size(1);
  p.queries = q.size(2);
  p.dim = q.size(3);
  p.heads_kv = k.size(1);
  p.dim_v = v.size(3);
  check.require(p.heads_kv > 0 ? p.heads % p.heads_kv == 0 : p.heads == 0,
                "q must have a multiple of the heads of k, got ", p.heads, " and ", p.heads_kv);
  check.require(p.dim >= 1 && k.size(3) == p.dim,
                "q and k must have the same head dimension of at least 1, got shapes ", shape_text(q), " and ",
                shape_text(k));
  check.require(v.size(0) == k.size(0) && v.size(1) == k.size(1) && v.size(2) == k.size(2),
                "v must be [B, Hkv, L, Dv] like k ", shape_text(k), ", got shape ", shape_text(v));
  p.sequences = sequences(check, k.size(0), k.size(2), o.cu_seqlens);
  check.length(p.queries, "the number of queries");
  check.require(q.size(0) == 1 || q.size(0) == p.sequences.count,
                "q must have a batch size of 1 or the number of sequences (", p.sequences.count, "), got shape ",
                shape_text(q));
  if (q.size(0) == 1) p.q.batch = 0;
  p.mask = mask_argument(check, o.key_mask, "key_mask", k.size(0), k.size(2));
  p.scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(p.dim)));
  check.require(std::isfinite(p.scale), "scale must be finite, got ", p.scale);
  check.require(o.activation == "softmax" || o.activation == "relu_mean",
                "activation must be 'softmax' or 'relu_mean', got '", o.activation.value, "'");
  check.require(o.axis == "keys" || o.axis == "queries", "axis must be 'keys' or 'queries', got '", o.axis.value, "'");
  check.require(o.activation == "softmax" || o.axis == "keys", "activation 'relu_mean' has no axis 'queries'");
  p.activation = o.activation == "relu_mean" ? PoolActivation::relu_mean
                 : o.axis == "keys"          ? PoolActivation::softmax_keys
                                             : PoolActivation::softmax_queries;
  return p;
}

bool empty(const QueryPoolParams& p) { return p.heads == 0 || p.queries == 0 || p.dim_v == 0; }
bool has_keys(const QueryPoolParams& p) { return p.sequences.count > 0 && p.sequences.tokens > 0; }

std::tuple<Tensor, Tensor> query_pool_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                              std::optional<double> scale, const OptionalTensor& cu_seqlens,
                                              const OptionalTensor& key_mask, const Text& activation,
                                              const Text& axis) {
  const Check check("query_pool_forward", q);
  QueryPoolParams p = arguments(check, q, k, v, {scale, cu_seqlens, key_mask, activation, axis});
  check_query_pool_forward_on(check, p);
  const bool has_lse = p.activation == PoolActivation::softmax_keys;
  const ScalarType type = statistics_type(q);
  Tensor out = new_tensor(q, {p.sequences.count, p.heads, p.queries, p.dim_v}, q.scalar_type());
  Tensor lse = has_lse ? new_tensor(q, {p.sequences.count, p.heads, p.queries}, type) : no_tensor(q, type);
  p.out = out.data_ptr();
  p.lse = data_if(lse, has_lse);
  if (empty(p)) {
    torch::stable::zero_(lse);  // no value, hence nothing that its lse could serve
  } else if (!has_keys(p)) {
    torch::stable::zero_(out);
    torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  } else {
    const Scratch scratch(q, query_pool_scratch_on(check, p));
    query_pool_forward_on(check, p, scratch.floats());
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> query_pool_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                       const Tensor& v, const OptionalTensor& out, const Tensor& lse,
                                                       const std::vector<bool>& wanted, std::optional<double> scale,
                                                       const OptionalTensor& cu_seqlens, const OptionalTensor& key_mask,
                                                       const Text& activation, const Text& axis) {
  const Check check("query_pool_backward", q);
  QueryPoolParams p = arguments(check, q, k, v, {scale, cu_seqlens, key_mask, activation, axis});
  const std::vector<int64_t> sizes{p.sequences.count, p.heads, p.queries, p.dim_v};
  check.same_type(dout, "dout", q, "q");
  check.shape(dout, "dout", sizes, "[sequences, H, M, Dv]");
  if (p.activation == PoolActivation::softmax_keys) {
    check.require(out.has_value(), "out must be given for a softmax over the keys");
    check.on_device(*out, "out");
    check.same_type(*out, "out", q, "q");
    check.shape(*out, "out", sizes, "[sequences, H, M, Dv]");
    check.contiguous(*out, "out");
    p.out = out->data_ptr();
    check.on_device(lse, "lse");
    check.type(lse, "lse", statistics_type(q));
    check.shape(lse, "lse", {sizes[0], sizes[1], sizes[2]}, "[sequences, H, M]");
    check.contiguous(lse, "lse");
    p.lse = lse.data_ptr();
  }
  wanted_count(check, wanted, 3);
  QueryPoolBackwardParams b{};
  b.dout = head_view(check, dout, "dout", "[sequences, H, M, Dv]");
  b.shared = q.size(0) == 1;
  b.forward = p;
  check_query_pool_backward_on(check, b);
  Tensor dq = gradient_like(q, wanted[0]);
  Tensor dk = wanted[1] ? new_in_order_of(k, p.dim) : no_tensor(k, k.scalar_type());
  Tensor dv = wanted[2] ? new_in_order_of(v, p.dim_v) : no_tensor(v, v.scalar_type());
  b.dq = data_if(dq, wanted[0]);
  if (wanted[1]) b.dk = check.view4(dk);
  if (wanted[2]) b.dv = check.view4(dv);
  if (empty(p) || !has_keys(p)) {
    for (Tensor* t : {&dq, &dk, &dv}) torch::stable::zero_(*t);
    return {dq, dk, dv};
  }
  if (check.on_cuda() && p.sequences.cu) {  // keys may stand behind the last sequence
    for (Tensor* t : {&dk, &dv}) torch::stable::zero_(*t);
  }
  const Scratch scratch(q, query_pool_scratch_on(check, b));
  query_pool_backward_on(check, b, scratch.floats());
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("query_pool_forward", TORCH_BOX(&query_pool_forward));
  m.impl("query_pool_backward", TORCH_BOX(&query_pool_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("query_pool_forward", TORCH_BOX(&query_pool_forward));
  m.impl("query_pool_backward", TORCH_BOX(&query_pool_backward));
}

}  // namespace attn::ops
