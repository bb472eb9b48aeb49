#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/decode.h"

namespace attn::cuda {

template <DType kType, int kDim> void launch_decode(const DecodeParams& p, Stream stream) {
  launch<Decode<Element<kType>, kDim>>("attention of few rows", p, stream);
}

}  // namespace attn::cuda
