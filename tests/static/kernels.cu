// Every CUDA kernel once, for resources.py.
#include "cuda/kernel.h"
#include "cuda/sm80/attend_forward.h"
#include "cuda/smxx/merge_states.h"

namespace attn::cuda {

#define ATTN_KERNEL(...) template cudaError_t launch<__VA_ARGS__>(dim3, const __VA_ARGS__::Params&, cudaStream_t)

ATTN_KERNEL(AttendForward<seam::Bf16, 64>);
ATTN_KERNEL(AttendForward<seam::Bf16, 128>);
ATTN_KERNEL(AttendForward<seam::Bf16, 256>);
ATTN_KERNEL(AttendForward<seam::F16, 64>);
ATTN_KERNEL(AttendForward<seam::F16, 128>);
ATTN_KERNEL(AttendForward<seam::F16, 256>);
ATTN_KERNEL(MergeStates<float>);
ATTN_KERNEL(MergeStates<seam::Bf16>);
ATTN_KERNEL(MergeStates<seam::F16>);
ATTN_KERNEL(MergeStatesBackward<float>);
ATTN_KERNEL(MergeStatesBackward<seam::Bf16>);
ATTN_KERNEL(MergeStatesBackward<seam::F16>);

}  // namespace attn::cuda
