// BlockLayout arguments of an op: types, shapes and, because a kernel indexes memory with them, every value.
#pragma once

#include "ops/attend_args.h"

namespace attn::ops {

struct LayoutTensors {
  const Tensor &kv_count, &kv_index;
  const OptionalTensor &full_count, &full_index, &partial_slot, &partial_bits;
  int64_t block_q, block_k;
};

// Fills p.layout and p.schedule; p holds the sizes already.
void set_layout(const Check& check, const LayoutTensors& t, AttendParams& p);

}  // namespace attn::ops
