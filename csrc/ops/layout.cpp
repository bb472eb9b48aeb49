// The lists of a BlockLayout from a mask, and with queries and keys exchanged.
#include "attn/layout.h"

#include <algorithm>

#include "ops/backend.h"
#include "ops/layout_args.h"

namespace attn::ops {
namespace {

int32_t* data(const Tensor& t) { return static_cast<int32_t*>(t.data_ptr()); }

std::tuple<Tensor, Tensor> layout_build(const Tensor& mask) {
  const Check check("layout_build", mask);
  check.on_device(mask, "mask");
  check.type(mask, "mask", ScalarType::Bool);
  check.rank(mask, "mask", 4, "[B|1, H|1, M, N]");
  check.last_contiguous(mask, "mask");
  for (int64_t dim = 0; dim < 4; ++dim) check.length(mask.size(dim), "each size of mask");
  LayoutBuildParams p{};
  p.mask = static_cast<const uint8_t*>(mask.data_ptr());
  p.mask_batch = mask.stride(0);
  p.mask_head = mask.stride(1);
  p.mask_row = mask.stride(2);
  p.batch = mask.size(0);
  p.heads = mask.size(1);
  p.rows = mask.size(2);
  p.columns = mask.size(3);
  check_layout_build_on(check, p);
  const Tensor count = new_tensor(mask, {p.batch, p.heads, p.rows}, ScalarType::Int);
  const Tensor index = new_tensor(mask, {p.batch, p.heads, p.rows, p.columns}, ScalarType::Int);
  p.out = {data(count), data(index), nullptr};
  layout_build_on(check, p);
  return {count, index};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layout_transpose(
    const Tensor& kv_count, const Tensor& kv_index, const OptionalTensor& full_count, const OptionalTensor& full_index,
    const OptionalTensor& partial_slot, const OptionalTensor& partial_bits, int64_t block_q, int64_t block_k,
    int64_t columns) {
  const Check check("layout_transpose", kv_count);
  check.index(kv_count, "kv_count", 3, "[B|1, H|1, M]");
  check.require(columns >= 0, "columns must be >= 0, got ", columns);
  check.length(columns, "columns");
  check.length(kv_count.size(2), "M");
  // As of an attention call with just these batches, heads and blocks.
  constexpr int64_t kMaxBlock = 1 << 20;
  AttendParams call{};
  call.batch = kv_count.size(0);
  call.heads = kv_count.size(1);
  call.tq = kv_count.size(2) * std::clamp<int64_t>(block_q, 0, kMaxBlock);
  call.tk = columns * std::clamp<int64_t>(block_k, 0, kMaxBlock);
  set_layout(check, {kv_count, kv_index, full_count, full_index, partial_slot, partial_bits, block_q, block_k}, call);
  LayoutTransposeParams p{};
  p.layout = call.layout;
  p.batch = call.batch;
  p.heads = call.heads;
  p.rows = kv_count.size(2);
  p.columns = columns;
  TilesTransposeParams tiles{p.layout.bits, p.layout.num_slots, block_q, block_k, nullptr};
  check_layout_transpose_on(check, p);
  const std::vector<int64_t> lists{p.batch, p.heads, p.columns}, entries{p.batch, p.heads, p.columns, p.rows};
  const auto made = [&](bool wanted, const std::vector<int64_t>& sizes) {
    return wanted ? new_tensor(kv_count, sizes, ScalarType::Int) : no_tensor(kv_count, ScalarType::Int);
  };
  const bool full = full_count.has_value(), cut = partial_slot.has_value();
  const Tensor count = made(true, lists), index = made(true, entries);
  const Tensor all_count = made(full, lists), all_index = made(full, entries);
  const Tensor slot = made(cut, entries), bits = made(cut, {tiles.slots, block_k, (block_q + 31) / 32});
  p.out = {data(count), data(index), cut ? data(slot) : nullptr};
  if (full) p.full = {data(all_count), data(all_index), nullptr};
  layout_transpose_on(check, p);
  tiles.out = data(bits);
  if (cut) tiles_transpose_on(check, tiles);
  return {count, index, all_count, all_index, slot, bits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("layout_build", TORCH_BOX(&layout_build));
  m.impl("layout_transpose", TORCH_BOX(&layout_transpose));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("layout_build", TORCH_BOX(&layout_build));
  m.impl("layout_transpose", TORCH_BOX(&layout_transpose));
}

}  // namespace attn::ops
