// S2-Attention: local blocks and a vertical stride that differs from head to head. The pattern is a formula; no list
// is built.
#include <algorithm>

#include "ops/attend_args.h"

namespace attn::ops {
namespace {

struct S2Options {
  int64_t block_size, local_blocks, vert_stride, head_offset;
  std::optional<int64_t> head_step;  // default max(1, vert_stride / H)
  int64_t dense_heads;
  bool homogeneous;
};

AttendParams s2_params(const Check& check, const Tensor& q, const Tensor& k, const Tensor& v, const S2Options& o,
                       bool causal, std::optional<double> scale) {
  constexpr int64_t kMaxBlock = 1 << 20, kMaxShift = int64_t{1} << 31;
  const auto fits = [](int64_t shift) { return shift > -kMaxShift && shift < kMaxShift; };
  AttendParams p = attend_params(check, q, k, v, plain_options(causal, scale));
  check.require(o.block_size > 0 && o.block_size % 16 == 0 && o.block_size <= kMaxBlock,
                "block_size must be a positive multiple of 16, at most ", kMaxBlock, ", got ", o.block_size);
  check.require(o.local_blocks >= 1 && o.local_blocks < kMaxShift,
                "local_blocks must be >= 1 (it counts the diagonal), got ", o.local_blocks);
  check.require(o.vert_stride >= 1 && o.vert_stride < kMaxShift, "vert_stride must be >= 1, got ", o.vert_stride);
  check.require(o.dense_heads >= 0 && o.dense_heads <= p.heads_kv, "dense_heads must be in [0, Hkv] = [0, ", p.heads_kv,
                "], got ", o.dense_heads);
  check.require(fits(o.head_offset), "head_offset must fit in int32, got ", o.head_offset);
  check.require(!o.head_step || fits(*o.head_step), "head_step must fit in int32, got ", o.head_step.value_or(0));
  check.require(causal || p.tq == p.tk, "q and k must have the same number of tokens where causal is False, got ", p.tq,
                " and ", p.tk);
  p.schedule = ScheduleKind::strided;
  StridedRule& s = p.strided;
  s.block = o.block_size;
  s.local = o.local_blocks;
  s.stride = o.vert_stride;
  s.head_step = o.homogeneous ? 0
                : o.head_step ? *o.head_step
                              : std::max<int64_t>(1, o.vert_stride / std::max<int64_t>(p.heads, 1));
  s.head_offset = o.head_offset;
  s.first_dense_head = p.heads_kv - o.dense_heads;
  s.bidirectional = !causal;
  return p;
}

std::tuple<Tensor, Tensor> s2_forward(const Tensor& q, const Tensor& k, const Tensor& v, int64_t block_size,
                                      int64_t local_blocks, int64_t vert_stride, int64_t head_offset,
                                      std::optional<int64_t> head_step, int64_t dense_heads, bool homogeneous,
                                      bool causal, std::optional<double> scale) {
  const Check check("s2_forward", q);
  const S2Options o{block_size, local_blocks, vert_stride, head_offset, head_step, dense_heads, homogeneous};
  AttendParams p = s2_params(check, q, k, v, o, causal, scale);
  return run_forward(check, p, q);
}

std::tuple<Tensor, Tensor, Tensor> s2_backward(const Tensor& dout, const OptionalTensor& dlse, const Tensor& q,
                                               const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
                                               const std::vector<bool>& wanted, int64_t block_size,
                                               int64_t local_blocks, int64_t vert_stride, int64_t head_offset,
                                               std::optional<int64_t> head_step, int64_t dense_heads, bool homogeneous,
                                               bool causal, std::optional<double> scale) {
  const Check check("s2_backward", q);
  const S2Options o{block_size, local_blocks, vert_stride, head_offset, head_step, dense_heads, homogeneous};
  AttendParams p = s2_params(check, q, k, v, o, causal, scale);
  return first_three(run_backward(check, p, {dout, dlse, q, k, v, out, lse}, wanted));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("s2_forward", TORCH_BOX(&s2_forward));
  m.impl("s2_backward", TORCH_BOX(&s2_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("s2_forward", TORCH_BOX(&s2_forward));
  m.impl("s2_backward", TORCH_BOX(&s2_backward));
}

}  // namespace attn::ops
