// Arguments that say which tokens there are: bounds of packed sequences, and masks.
#pragma once

#include "ops/check.h"

namespace attn::ops {

// cu_seqlens: int32, from 0, not decreasing, at most `tokens`. On a GPU nobody looks; kernels cut what is out of range.
inline const int32_t* bounds_argument(const Check& check, const Tensor& cu, const char* name, int64_t tokens) {
  check.index(cu, name, 1, "[N + 1] for N sequences");
  const int64_t n = cu.size(0);
  check.require(n >= 1, name, " must hold at least the entry 0, got shape ", shape_text(cu));
  const int32_t* values = static_cast<const int32_t*>(cu.data_ptr());
  if (!check.values_known()) return values;
  check.require(values[0] == 0, name, " must start at 0, got ", values[0]);
  for (int64_t i = 1; i < n; ++i) {
    check.require(values[i] >= values[i - 1], name, " must not decrease, got ", values[i - 1], " before ", values[i],
                  " at entry ", i);
  }
  check.require(values[n - 1] <= tokens, name, " must not exceed the number of tokens (", tokens, "), got ",
                values[n - 1], " in its last entry");
  return values;
}

inline MaskView mask_argument(const Check& check, const std::optional<Tensor>& mask, const char* name, int64_t batch,
                              int64_t tokens) {
  if (!mask) return {nullptr, 0, 0};
  check.on_device(*mask, name);
  check.type(*mask, name, ScalarType::Bool);
  check.shape(*mask, name, {batch, tokens}, "[B, T]");
  check.nonnegative_strides(*mask, name);
  return {static_cast<const uint8_t*>(mask->data_ptr()), mask->stride(0), mask->stride(1)};
}

}  // namespace attn::ops
