// From a kernel struct (Params, Shared, kThreads, static run) to a launch. Compiled by nvcc only.
#pragma once

#include <cuda_runtime.h>

#include "cuda/seam.h"

namespace attn::cuda {

template <class K> __global__ void __launch_bounds__(K::kThreads, 1)
    kernel(const __grid_constant__ typename K::Params p) {
  extern __shared__ __align__(128) char shared[];
  K::run(p, *reinterpret_cast<typename K::Shared*>(shared));
}

// Asynchronous on `stream`; nothing is launched for an empty grid.
template <class K> cudaError_t launch(dim3 grid, const typename K::Params& params, cudaStream_t stream) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  constexpr size_t shared = sizeof(typename K::Shared);
  if constexpr (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<K><<<grid, K::kThreads, shared, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace attn::cuda
