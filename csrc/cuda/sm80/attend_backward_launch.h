#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/key_gradients.h"
#include "cuda/sm80/query_gradients.h"

namespace attn::cuda {

template <DType kType, int kDim> void launch_attend_gradients(const BackwardParams& b, Stream stream) {
  launch<QueryGradients<Element<kType>, kDim>>("attention backward, dQ", b, stream);
  launch<KeyGradients<Element<kType>, kDim>>("attention backward, dK and dV", b, stream);
}

}  // namespace attn::cuda
