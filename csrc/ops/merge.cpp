#include "attn/merge.h"

#include "ops/backend.h"
#include "ops/check.h"

namespace attn::ops {
namespace {

// Sizes and strides of [N, ..., D] (or [N, ...] with trailing = 0) as [N, B, H, T]: missing dimensions have size 1.
struct Parts {
  int64_t sizes[4] = {1, 1, 1, 1};
  int64_t strides[4] = {0, 0, 0, 0};

  Parts(const Tensor& t, int64_t trailing) {
    const int64_t middle = t.dim() - 1 - trailing;
    sizes[0] = t.size(0);
    strides[0] = t.stride(0);
    for (int64_t i = 0; i < middle; ++i) {
      sizes[4 - middle + i] = t.size(1 + i);
      strides[4 - middle + i] = t.stride(1 + i);
    }
  }

  PartsView view(const Tensor& t) const { return {t.data_ptr(), strides[0], strides[1], strides[2], strides[3]}; }
};

std::vector<int64_t> sizes_of(const Tensor& t, int64_t begin, int64_t end) {
  std::vector<int64_t> sizes;
  for (int64_t i = begin; i < end; ++i) sizes.push_back(t.size(i));
  return sizes;
}

// The parts, which both passes read.
template <class Params> void set_parts(const Check& check, Params& p, const Tensor& outs, const Tensor& lses) {
  check.require(outs.dim() >= 2 && outs.dim() <= 5, "outs must be [N, ..., D] with 2 to 5 dimensions, got shape ",
                shape_text(outs));
  p.dtype = check.floating(outs, "outs");
  check.require(outs.size(0) >= 1, "outs must hold at least one part, got shape ", shape_text(outs));
  check.last_contiguous(outs, "outs");
  check.on_device(lses, "lses");
  check.type(lses, "lses", statistics_type(outs));
  check.shape(lses, "lses", sizes_of(outs, 0, outs.dim() - 1), "outs without its last dimension");
  check.nonnegative_strides(lses, "lses");
  const Parts parts(outs, 1);
  p.parts = parts.sizes[0];
  p.batch = parts.sizes[1];
  p.heads = parts.sizes[2];
  p.tokens = parts.sizes[3];
  p.dim = outs.size(outs.dim() - 1);
  p.outs = parts.view(outs);
  p.lses = Parts(lses, 0).view(lses);
}

// Strides of a tensor shaped like one part, as [B, H, T].
View4 part_view(const Tensor& t, int64_t trailing) {
  int64_t strides[3] = {0, 0, 0};
  const int64_t middle = t.dim() - trailing;
  for (int64_t i = 0; i < middle; ++i) strides[3 - middle + i] = t.stride(i);
  return {t.data_ptr(), strides[0], strides[1], strides[2]};
}

std::tuple<Tensor, Tensor> merge_states(const Tensor& outs, const Tensor& lses) {
  const Check check("merge_states", outs);
  MergeStatesParams p{};
  set_parts(check, p, outs, lses);
  check_merge_states_on(check, p);
  Tensor out = new_tensor(outs, sizes_of(outs, 1, outs.dim()), outs.scalar_type());
  Tensor lse = new_tensor(outs, sizes_of(lses, 1, lses.dim()), lses.scalar_type());
  p.out = out.data_ptr();
  p.lse = lse.data_ptr();
  merge_states_on(check, p);
  return {out, lse};
}

std::tuple<Tensor, Tensor> merge_states_backward(const Tensor& dout, const std::optional<Tensor>& dlse,
                                                 const Tensor& outs, const Tensor& lses, const Tensor& lse) {
  const Check check("merge_states_backward", outs);
  MergeStatesBackwardParams p{};
  set_parts(check, p, outs, lses);
  const std::vector<int64_t> lse_sizes = sizes_of(lses, 1, lses.dim());
  check.on_device(dout, "dout");
  check.same_type(dout, "dout", outs, "outs");
  check.shape(dout, "dout", sizes_of(outs, 1, outs.dim()), "one part of outs");
  check.last_contiguous(dout, "dout");
  check.on_device(lse, "lse");
  check.same_type(lse, "lse", lses, "lses");
  check.shape(lse, "lse", lse_sizes, "one part of lses");
  check.contiguous(lse, "lse");
  if (dlse) {
    check.on_device(*dlse, "dlse");
    check.same_type(*dlse, "dlse", lses, "lses");
    check.shape(*dlse, "dlse", lse_sizes, "one part of lses");
    check.nonnegative_strides(*dlse, "dlse");
  }
  p.lse = lse.data_ptr();
  p.dout = part_view(dout, 1);
  if (dlse) {
    const View4 v = part_view(*dlse, 0);
    p.dlse = {v.data, v.batch, v.head, v.token};
  }
  check_merge_states_backward_on(check, p);
  Tensor douts = new_tensor(outs, sizes_of(outs, 0, outs.dim()), outs.scalar_type());
  Tensor dlses = new_tensor(outs, sizes_of(lses, 0, lses.dim()), lses.scalar_type());
  p.douts = douts.data_ptr();
  p.dlses = dlses.data_ptr();
  merge_states_backward_on(check, p);
  return {douts, dlses};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("merge_states", TORCH_BOX(&merge_states));
  m.impl("merge_states_backward", TORCH_BOX(&merge_states_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("merge_states", TORCH_BOX(&merge_states));
  m.impl("merge_states_backward", TORCH_BOX(&merge_states_backward));
}

}  // namespace attn::ops
