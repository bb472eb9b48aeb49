// Whether a call's rows can be read and written 16 bytes at a time (vectors.h), decided on the host.
#pragma once

#include <initializer_list>

#include "attn/pool.h"

namespace attn::cuda {

inline int64_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

// Do all rows lie on 16 bytes? `views`: inputs, absent ones too; results are contiguous and come from an allocator.
inline bool wide_rows(DType type, int64_t channels, std::initializer_list<TokenView> views) {
  const int64_t bytes = bytes_of(type);
  bool wide = channels * bytes % 16 == 0;
  for (const TokenView& v : views) {
    const int64_t at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(v.data));
    wide = wide && (!v.data || (at % 16 == 0 && v.batch * bytes % 16 == 0 && v.token * bytes % 16 == 0));
  }
  return wide;
}

// Arguments of a pooling kernel.
template <class Arguments> struct WideCall {
  Arguments p;
  bool wide;
};

template <class Forward> WideCall<Forward> wide_call(const Forward& p) {
  return {p, wide_rows(p.dtype, p.channels, {p.x})};
}
template <class Backward> WideCall<Backward> wide_backward_call(const Backward& b) {
  return {b, wide_rows(b.forward.dtype, b.forward.channels, {b.forward.x, b.dout})};
}

}  // namespace attn::cuda
