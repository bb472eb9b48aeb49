// The type in which a kernel reads elements of a DType.
#pragma once

#include "cuda/seam.h"

namespace attn::cuda {

template <DType kType> struct ElementOf;
template <> struct ElementOf<DType::f32> { using type = float; };
template <> struct ElementOf<DType::bf16> { using type = seam::Bf16; };
template <> struct ElementOf<DType::f16> { using type = seam::F16; };
template <DType kType> using Element = typename ElementOf<kType>::type;

}  // namespace attn::cuda
