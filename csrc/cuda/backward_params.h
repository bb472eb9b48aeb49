// Arguments of the backward's kernels.
#pragma once

#include "attn/params.h"

namespace attn::cuda {

struct BackwardParams : AttendBackwardParams {
  float* delta;  // [B, H, Tq], by AttendDelta for the others
};

}  // namespace attn::cuda
