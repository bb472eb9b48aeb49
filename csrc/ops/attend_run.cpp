// Allocates results, fills what no kernel writes, and calls the kernels.
#include <limits>
#include <optional>

#include "ops/attend_args.h"
#include "ops/backend.h"

namespace attn::ops {
namespace {

bool has_rows(const AttendParams& p) { return p.batch > 0 && p.heads > 0 && p.tq > 0; }

// May rows (or keys) stand behind the last packed sequence? Kernels never touch those. On a GPU nobody has looked where
// it ends.
bool left_over(const Check& check, const int32_t* cu, const AttendParams& p, int64_t tokens) {
  return cu && (!check.values_known() || cu[p.sequences] < tokens);
}
bool rows_left_over(const Check& check, const AttendParams& p) { return left_over(check, p.cu_q, p, p.tq); }
bool keys_left_over(const Check& check, const AttendParams& p) { return left_over(check, p.cu_k, p, p.tk); }

void check_like_out(const Check& check, const Tensor& t, const char* name, const AttendParams& p, const Tensor& q) {
  check.on_device(t, name);
  check.same_type(t, name, q, "q");
  check.shape(t, name, {p.batch, p.heads, p.tq, p.dim_v}, "[B, H, Tq, Dv]");
  check.last_contiguous(t, name);
}

void check_like_lse(const Check& check, const Tensor& t, const char* name, const AttendParams& p, const Tensor& q) {
  check.on_device(t, name);
  check.type(t, name, statistics_type(q));
  check.shape(t, name, {p.batch, p.heads, p.tq}, "[B, H, Tq]");
  check.contiguous(t, name);
}

}  // namespace

std::tuple<Tensor, Tensor> run_forward(const Check& check, AttendParams& p, const Tensor& q) {
  check_attend_forward_on(check, p);
  Tensor out = new_in_order_of(q, p.dim_v);
  Tensor lse = new_tensor(q, {p.batch, p.heads, p.tq}, statistics_type(q));
  if (!has_rows(p)) return {out, lse};
  if (rows_left_over(check, p)) {
    torch::stable::zero_(out);
    torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  }
  p.out = check.view4(out);
  p.lse = lse.data_ptr();
  const Scratch scratch(q, attend_scratch_on(check, p));
  attend_forward_on(check, p, scratch.floats());
  return {out, lse};
}

Gradients run_backward(const Check& check, AttendParams& p, const BackwardTensors& t, const std::vector<bool>& wanted) {
  check_like_out(check, t.out, "out", p, t.q);
  check_like_out(check, t.dout, "dout", p, t.q);
  check_like_lse(check, t.lse, "lse", p, t.q);
  if (t.dlse) check_like_lse(check, *t.dlse, "dlse", p, t.q);
  AttendBackwardParams b{};
  b.forward = p;
  check_attend_backward_on(check, b);

  const bool given[kGradients] = {
      true, true, true, p.key_log_weight.data != nullptr, p.sink_logits != nullptr, p.head_gate.data != nullptr};
  auto wants = [&](Gradient g) { return static_cast<size_t>(g) < wanted.size() && wanted[g]; };
  auto make = [&](Gradient g, auto&& allocate) {
    const ScalarType type = g <= kV ? t.q.scalar_type() : ScalarType::Float;
    return wants(g) ? allocate() : no_tensor(t.q, type);
  };
  auto floats = [&](const std::vector<int64_t>& sizes) {
    return [&t, sizes] { return new_tensor(t.q, sizes, ScalarType::Float); };
  };
  Gradients grads = {make(kQ, [&] { return new_in_order_of(t.q, p.dim); }),
                     make(kK, [&] { return new_in_order_of(t.k, p.dim); }),
                     make(kV, [&] { return new_in_order_of(t.v, p.dim_v); }),
                     make(kKeyLogWeight, floats({p.batch, p.heads_kv, p.tk})),
                     make(kSinkLogits, floats({p.heads})),
                     make(kHeadGate, floats({p.batch, p.heads, p.tq}))};

  const bool rows = has_rows(p);
  for (int g = 0; g < kGradients; ++g) {
    const bool by_row = g == kQ || g == kHeadGate, by_key = g == kK || g == kV || g == kKeyLogWeight;
    const bool unwritten =
        !rows || !given[g] || (by_row && rows_left_over(check, p)) || (by_key && keys_left_over(check, p));
    if (unwritten && wants(static_cast<Gradient>(g))) torch::stable::zero_(grads[g]);
  }
  if (!rows) return grads;

  // One pass over rows and one over keys: a pass runs if anything it gives is wanted, and then needs all its places.
  auto wanted_and_given = [&](Gradient g) { return wants(g) && given[g]; };
  const bool row_pass = wants(kQ) || wanted_and_given(kHeadGate);
  const bool key_pass = wants(kK) || wants(kV) || wanted_and_given(kKeyLogWeight);
  Tensor dq = row_pass && !wants(kQ) ? new_in_order_of(t.q, p.dim) : grads[kQ];
  Tensor dk = key_pass && !wants(kK) ? new_in_order_of(t.k, p.dim) : grads[kK];
  Tensor dv = key_pass && !wants(kV) ? new_in_order_of(t.v, p.dim_v) : grads[kV];

  const Scratch scratch(t.q, check.on_cuda() ? p.batch * p.heads * p.tq : 0);
  b.forward.out = check.view4(t.out);
  b.forward.lse = t.lse.data_ptr();
  b.dout = check.view4(t.dout);
  b.dlse = t.dlse ? t.dlse->data_ptr() : nullptr;
  if (row_pass) b.dq = check.view4(dq);
  if (key_pass) {
    b.dk = check.view4(dk);
    b.dv = check.view4(dv);
  }
  auto floats_of = [&](Gradient g) { return wanted_and_given(g) ? static_cast<float*>(grads[g].data_ptr()) : nullptr; };
  b.dkey_log_weight = floats_of(kKeyLogWeight);
  b.dsink_logits = floats_of(kSinkLogits);
  b.dhead_gate = floats_of(kHeadGate);
  attend_backward_on(check, b, scratch.floats());
  return grads;
}

}  // namespace attn::ops
