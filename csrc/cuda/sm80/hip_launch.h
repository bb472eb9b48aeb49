#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/hip_select.h"

namespace attn::cuda {

template <DType kType, int kDim> void launch_hip_select(const SelectParams& p, Stream stream) {
  using T = Element<kType>;
  if (hip_nodes(p) <= kHipNodes) launch<HipSelect<T, kDim, kHipNodes>>("hip_select", p, stream);
  else launch<HipSelect<T, kDim, kHipNodesAtMost>>("hip_select", p, stream);
}

}  // namespace attn::cuda
