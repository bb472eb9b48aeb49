// Linear attention: feature maps, normaliser, states, causal or not.
#include "ops/backend.h"
#include "ops/scan_args.h"
#include "ops/text.h"

namespace attn::ops {
namespace {

struct LinearOptions {
  const Text& feature_map;
  bool causal, normalize;
  double eps;
  const OptionalTensor &key_mask, &cu_seqlens, &initial_s, &initial_z;
};

FeatureMap feature_map(const Check& check, const Text& name) {
  constexpr std::pair<const char*, FeatureMap> maps[] = {
      {"elu1", FeatureMap::elu1},         {"relu", FeatureMap::relu},       {"exp", FeatureMap::exp},
      {"identity", FeatureMap::identity}, {"sigmoid", FeatureMap::sigmoid}, {"taylor2", FeatureMap::taylor2}};
  for (const auto& [text, map] : maps) {
    if (name == text) return map;
  }
  check.fail("feature_map must be 'elu1', 'relu', 'exp', 'identity', 'sigmoid' or 'taylor2', got '", name.value, "'");
}

struct LinearSizes { std::vector<int64_t> s, z, mass; };

LinearSizes sizes(const LinearParams& p) {
  const int64_t features = feature_count(p.map, p.dim);
  return {{p.sequences, p.heads_kv, features, p.dim_v}, {p.sequences, p.heads_kv, features}, {p.batch, p.heads, p.tq}};
}

LinearParams linear_params(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v,
                           const LinearOptions& o) {
  LinearParams p{};
  set_query_key_value(check, p, q, k, v);
  p.map = feature_map(check, o.feature_map);
  p.causal = o.causal;
  p.normalize = o.normalize;
  p.eps = o.eps;
  check.require(o.eps >= 0 && o.eps < 1e30, "eps must be finite and >= 0, got ", o.eps);
  check.require(!o.causal || p.tq == p.tk, "causal needs q and k of the same number of tokens, got ", p.tq, " and ",
                p.tk, "; give the past as an initial state");
  set_packed(check, p, o.cu_seqlens, p.tk, p.tq);
  p.key_mask = mask_argument(check, o.key_mask, "key_mask", p.batch, p.tk);
  check.require(o.initial_s.has_value() == o.initial_z.has_value(), "initial_s and initial_z must be given together");
  const LinearSizes size = sizes(p);
  p.s0 = state_data(check, o.initial_s, "initial_s", size.s, "[B, Hkv, F, Dv]", q);
  p.z0 = state_data(check, o.initial_z, "initial_z", size.z, "[B, Hkv, F]", q);
  return p;
}

bool empty(const LinearParams& p) { return p.heads == 0 || p.dim_v == 0 || p.batch == 0; }

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                          const Text& feature_map, bool causal, bool normalize,
                                                          double eps, const OptionalTensor& key_mask,
                                                          const OptionalTensor& cu_seqlens,
                                                          const OptionalTensor& initial_s,
                                                          const OptionalTensor& initial_z, bool keep_state) {
  const Check check("linear_forward", q);
  LinearParams p =
      linear_params(check, q, k, v, {feature_map, causal, normalize, eps, key_mask, cu_seqlens, initial_s, initial_z});
  check_linear_forward_on(check, p);
  const ScalarType type = statistics_type(q);
  const LinearSizes size = sizes(p);
  const bool states = keep_state || !causal;
  Tensor out = new_in_order_of(q, p.dim_v);
  Tensor mass = normalize ? new_tensor(q, size.mass, type) : no_tensor(q, type);
  Tensor s = states ? new_tensor(q, size.s, type) : no_tensor(q, type);
  Tensor z = states ? new_tensor(q, size.z, type) : no_tensor(q, type);
  if (empty(p)) {
    torch::stable::zero_(mass);
    torch::stable::zero_(z);
    return {out, mass, s, z};
  }
  if (rows_unwritten(check, p)) {
    torch::stable::zero_(out);
    torch::stable::zero_(mass);
  }
  p.out = check.view4(out);
  p.mass = normalize ? mass.data_ptr() : nullptr;
  p.s = states ? s.data_ptr() : nullptr;
  p.z = states ? z.data_ptr() : nullptr;
  const Scratch scratch(q, linear_scratch_on(check, p));
  linear_forward_on(check, p, scratch.floats());
  return {out, mass, s, z};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_backward(
    const Tensor& dout, const OptionalTensor& ds, const OptionalTensor& dz, const Tensor& q, const Tensor& k,
    const Tensor& v, const OptionalTensor& out, const Tensor& mass, const OptionalTensor& s, const OptionalTensor& z,
    const Text& feature_map, bool causal, bool normalize, double eps, const OptionalTensor& key_mask,
    const OptionalTensor& cu_seqlens, const OptionalTensor& initial_s, const OptionalTensor& initial_z) {
  const Check check("linear_backward", q);
  LinearParams p =
      linear_params(check, q, k, v, {feature_map, causal, normalize, eps, key_mask, cu_seqlens, initial_s, initial_z});
  const LinearSizes size = sizes(p);
  if (normalize) {
    check.require(out.has_value(), "out must be given where normalize is true");
    p.out = result_view(check, *out, "out", {p.batch, p.heads, p.tq, p.dim_v}, q);
    p.mass = state_data(check, mass, "mass", size.mass, "[B, H, Tq]", q);
  }
  if (!causal) {
    check.require(s && z, "s and z must be given where causal is false");
    p.s = state_data(check, s, "s", size.s, "[B, Hkv, F, Dv]", q);
    p.z = state_data(check, z, "z", size.z, "[B, Hkv, F]", q);
  }
  LinearBackwardParams b{};
  b.dout = result_view(check, dout, "dout", {p.batch, p.heads, p.tq, p.dim_v}, q);
  b.ds = state_data(check, ds, "ds", size.s, "[B, Hkv, F, Dv]", q);
  b.dz = state_data(check, dz, "dz", size.z, "[B, Hkv, F]", q);
  b.forward = p;
  check_linear_backward_on(check, b);
  Tensor dq = new_in_order_of(q, p.dim), dk = new_in_order_of(k, p.dim), dv = new_in_order_of(v, p.dim_v);
  const ScalarType type = statistics_type(q);
  const bool states = initial_s.has_value();
  Tensor ds0 = states ? new_tensor(q, size.s, type) : no_tensor(q, type);
  Tensor dz0 = states ? new_tensor(q, size.z, type) : no_tensor(q, type);
  if (empty(p)) {
    for (Tensor* t : {&dq, &dk, &dv, &ds0, &dz0}) torch::stable::zero_(*t);
    return {dq, dk, dv, ds0, dz0};
  }
  if (rows_unwritten(check, p)) {
    for (Tensor* t : {&dq, &dk, &dv}) torch::stable::zero_(*t);
  }
  b.dq = check.view4(dq);
  b.dk = check.view4(dk);
  b.dv = check.view4(dv);
  b.ds0 = states ? ds0.data_ptr() : nullptr;
  b.dz0 = states ? dz0.data_ptr() : nullptr;
  const Scratch scratch(q, linear_backward_scratch_on(check, b));
  linear_backward_on(check, b, scratch.floats());
  return {dq, dk, dv, ds0, dz0};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("linear_forward", TORCH_BOX(&linear_forward));
  m.impl("linear_backward", TORCH_BOX(&linear_backward));
}

}  // namespace attn::ops
