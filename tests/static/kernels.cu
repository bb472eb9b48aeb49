// Every CUDA kernel once, for resources.py.
#include "cuda/kernel.h"
#include "cuda/smxx/merge_states.h"

namespace attn::cuda {

#define ATTN_KERNEL(...) template cudaError_t launch<__VA_ARGS__>(dim3, const __VA_ARGS__::Params&, cudaStream_t)

ATTN_KERNEL(MergeStates<float>);
ATTN_KERNEL(MergeStates<seam::Bf16>);
ATTN_KERNEL(MergeStates<seam::F16>);
ATTN_KERNEL(MergeStatesBackward<float>);
ATTN_KERNEL(MergeStatesBackward<seam::Bf16>);
ATTN_KERNEL(MergeStatesBackward<seam::F16>);

}  // namespace attn::cuda
