// What stands between a launch and the device: limits that are known before, errors that CUDA reports after.
#pragma once

#include <cuda_runtime.h>

#include "cuda/grid.h"

namespace attn::cuda {

// Throws if the current device can't run a block of `shared` bytes, or the grid is larger than CUDA allows.
void check_launch(const char* what, const Grid& grid, size_t shared);

// Throws unless `result` is success, with what to do about it.
void check_result(const char* what, cudaError_t result);

}  // namespace attn::cuda
