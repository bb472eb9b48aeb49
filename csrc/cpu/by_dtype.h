// Kernel<element type>(params).run() for the element type that params name.
#pragma once

#include "cpu/simd.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <template <class> class Kernel, class Params> inline void run_by_dtype(DType dtype, const Params& params) {
  switch (dtype) {
    case DType::f32: return Kernel<float>(params).run();
    case DType::f64: return Kernel<double>(params).run();
    case DType::bf16: return Kernel<bf16>(params).run();
    case DType::f16: return Kernel<f16>(params).run();
  }
}

}  // namespace scan
ATTN_NAMESPACE_END
