// Argument checks that the scan ops share.
#pragma once

#include "attn/scan.h"
#include "ops/attend_args.h"
#include "ops/token_args.h"

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
  check.require(p.batch == 1, "cu_seqlens needs a batch size of 1 (sequences are packed along tokens), got ", p.batch);
  check.require(tokens == other_tokens, "cu_seqlens needs q and k of the same number of tokens, got ", tokens, " and ",
                other_tokens);
  p.cu = bounds_argument(check, *cu, "cu_seqlens", tokens);
  p.sequences = cu->size(0) - 1;
}

// May rows stand behind the last packed sequence, unwritten? On a GPU nobody has looked where it ends, and kernels
// don't touch them.
template <class Params> bool rows_unwritten(const Check& check, const Params& p) {
  return p.cu && !check.values_known();
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
