#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/attend_forward.h"

namespace attn::cuda {

template <DType kType, int kDim> void launch_attend_forward(const AttendParams& p, Stream stream) {
  launch<AttendForward<Element<kType>, kDim>>("attention forward", p, stream);
}

}  // namespace attn::cuda
