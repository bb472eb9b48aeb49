// Launches a kernel struct (Params, Shared, kThreads, grid, run) on the device; nvcc only.
#pragma once

#include <cuda_runtime.h>

#include "cuda/element.h"
#include "cuda/grid.h"
#include "cuda/refuse.h"

namespace attn::cuda {

// Threads and bytes of shared memory of a block stand in the name for tests/static to read.
template <class K, int kThreads = K::kThreads, size_t kShared = sizeof(typename K::Shared)>
__global__ void __launch_bounds__(kThreads, 1) kernel(const __grid_constant__ typename K::Params p) {
  extern __shared__ __align__(1024) unsigned char shared[];  // the period of TMA's swizzle
  K::run(p, *reinterpret_cast<typename K::Shared*>(shared));
}

// Asynchronous on `stream`, of the current device; nothing is launched for an empty grid. `what` names the kernel in
// errors.
template <class K> void launch(const char* what, const typename K::Params& params, cudaStream_t stream) {
  const Grid grid = K::grid(params);
  if (grid.empty()) return;
  constexpr size_t shared = sizeof(typename K::Shared);
  check_launch(what, grid, shared);
  if constexpr (shared > 48 * 1024) {
    // For each device anew: the attribute belongs to it. Less than a microsecond.
    check_result(
        what, cudaFuncSetAttribute(kernel<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  const dim3 blocks(static_cast<uint32_t>(grid.x), static_cast<uint32_t>(grid.y), static_cast<uint32_t>(grid.z));
  kernel<K><<<blocks, K::kThreads, shared, stream>>>(params);
  check_result(what, cudaGetLastError());
}

}  // namespace attn::cuda
