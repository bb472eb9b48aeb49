// Argument checks that the scan ops share.
#pragma once

#include "attn/scan.h"
#include "ops/attend_args.h"

namespace attn::ops {

// q, k, v as the attend ops check them. Fills what every params struct of the scan family has.
template <class Params>
void set_query_key_value(const Check& check, Params& p, const Tensor& q, const Tensor& k, const Tensor& v) {
  const AttendParams checked = attend_params(check, q, k, v, plain_options(false, 1.0));
  p.dtype = checked.dtype;
  p.batch = checked.batch;
  p.heads = checked.heads;
  p.heads_kv = checked.heads_kv;
  p.tq = checked.tq;
  p.tk = checked.tk;
  p.dim = checked.dim;
  p.dim_v = checked.dim_v;
  p.q = checked.q;
  p.k = checked.k;
  p.v = checked.v;
}

// Packed sequences along `tokens`, or one sequence per batch entry.
template <class Params>
void set_packed(const Check& check, Params& p, const OptionalTensor& cu, int64_t tokens, int64_t other_tokens) {
  p.sequences = p.batch;
  if (!cu) return;
  check.index(*cu, "cu_seqlens", 1, "[N + 1]");
  const int64_t n = cu->size(0);
  check.require(p.batch == 1, "cu_seqlens needs a batch size of 1 (sequences are packed along tokens), got ", p.batch);
  check.require(tokens == other_tokens, "cu_seqlens needs q and k of the same number of tokens, got ", tokens, " and ",
                other_tokens);
  check.require(n >= 1, "cu_seqlens must hold at least the entry 0, got shape ", shape_text(*cu));
  const int32_t* values = static_cast<const int32_t*>(cu->data_ptr());
  p.cu = values;
  p.sequences = n - 1;
  if (!check.values_known()) return;
  check.require(values[0] == 0, "cu_seqlens must start at 0, got ", values[0]);
  for (int64_t i = 1; i < n; ++i) {
    check.require(values[i] >= values[i - 1], "cu_seqlens must not decrease, got ", values[i - 1], " before ",
                  values[i], " at entry ", i);
  }
  check.require(values[n - 1] <= tokens, "cu_seqlens must not exceed the number of tokens (", tokens, "), got ",
                values[n - 1], " in its last entry");
}

// May rows stand behind the last packed sequence, unwritten? On a GPU nobody has looked where it ends, and kernels
// don't touch them.
template <class Params> bool rows_unwritten(const Check& check, const Params& p) {
  return p.cu && !check.values_known();
}

inline MaskView mask_view(const Check& check, const OptionalTensor& mask, const char* name, int64_t batch,
                          int64_t tokens) {
  if (!mask) return {nullptr, 0, 0};
  check.on_device(*mask, name);
  check.type(*mask, name, ScalarType::Bool);
  check.shape(*mask, name, {batch, tokens}, "[B, T]");
  check.nonnegative_strides(*mask, name);
  return {static_cast<const uint8_t*>(mask->data_ptr()), mask->stride(0), mask->stride(1)};
}

// A contiguous tensor of statistics or states; null where absent.
inline void* state_data(const Check& check, const Tensor& t, const char* name, const std::vector<int64_t>& sizes,
                        const char* layout, const Tensor& like) {
  check.on_device(t, name);
  check.type(t, name, statistics_type(like));
  check.shape(t, name, sizes, layout);
  check.contiguous(t, name);
  return t.data_ptr();
}
inline void* state_data(const Check& check, const OptionalTensor& t, const char* name,
                        const std::vector<int64_t>& sizes, const char* layout, const Tensor& like) {
  return t ? state_data(check, *t, name, sizes, layout, like) : nullptr;
}

// A tensor shaped and typed like the op's result.
inline View4 result_view(const Check& check, const Tensor& t, const char* name, const std::vector<int64_t>& sizes,
                         const Tensor& like) {
  check.on_device(t, name);
  check.same_type(t, name, like, "q");
  check.shape(t, name, sizes, "[B, H, T, Dv]");
  check.last_contiguous(t, name);
  return check.view4(t);
}

}  // namespace attn::ops
