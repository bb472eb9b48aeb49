#include "ops/backend.h"

#include "cuda/axis_gate_parts.h"
#include "cuda/decode_split.h"
#include "cuda/flow_grad_work.h"
#include "cuda/linear_scratch.h"
#include "cuda/ponet_grad_work.h"
#include "cuda/prefix_work.h"
#include "cuda/query_pool_parts.h"
#include "cuda/topk_parts.h"

#if ATTN_HAS_CUDA
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/launch.h"

// Weak: a torch without CUDA doesn't have it, and the same library must load there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace attn::ops {
namespace {

#if ATTN_HAS_CUDA

using GetStream = AOTITorchError (*)(int32_t, void**);

GetStream find_get_stream() {
  if (aoti_torch_get_current_cuda_stream) return aoti_torch_get_current_cuda_stream;
  // It lies in libtorch_cuda, which torch may have loaded without making its names global.
  void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  return reinterpret_cast<GetStream>(found);
}

// Makes the tensors' device current while it lives.
class OnDevice {
 public:
  explicit OnDevice(const Check& check) : guard_(check.device_index()) {
    static const GetStream get_stream = find_get_stream();
    if (!get_stream) check.fail("this torch has no CUDA streams; install a CUDA build of torch");
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(get_stream(check.device_index(), &stream));
    stream_ = static_cast<cuda::Stream>(stream);
  }
  cuda::Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Stream stream_;
};

// Kernels know neither the op nor its arguments' names.
template <class F> void named(const Check& check, F&& call) {
  try {
    call();
  } catch (const std::runtime_error& error) { check.fail(error.what()); }
}

#define ATTN_CUDA_CHECK(function) named(check, [&] { cuda::check_##function(params); })
#define ATTN_CUDA_CALL(function, ...) named(check, [&] { cuda::function(__VA_ARGS__, OnDevice(check).stream()); })

#else

[[noreturn]] void no_kernels(const Check& check) {
  check.fail(
      "this build has no CUDA kernels; install from source with nvcc >= 12 on PATH (pip install . "
      "-Ccmake.define.ATTN_CUDA=ON), or move the tensors to the CPU with .cpu()");
}

#define ATTN_CUDA_CHECK(function) no_kernels(check)
#define ATTN_CUDA_CALL(function, ...) no_kernels(check)

#endif

}  // namespace

#define ATTN_BACKEND_CHECK(function, Params)                             \
  void check_##function##_on(const Check& check, const Params& params) { \
    static_cast<void>(params);                                           \
    if (check.on_cuda()) ATTN_CUDA_CHECK(function);                      \
  }

// One row for each function that both backends have.
#define ATTN_BACKEND(function, Params)                           \
  ATTN_BACKEND_CHECK(function, Params)                           \
  void function##_on(const Check& check, const Params& params) { \
    if (check.on_cuda()) ATTN_CUDA_CALL(function, params);       \
    else cpu::function(params);                                  \
  }

// The same for one whose CUDA kernels want scratch memory.
#define ATTN_BACKEND_SCRATCH(function, Params)                                   \
  ATTN_BACKEND_CHECK(function, Params)                                           \
  void function##_on(const Check& check, const Params& params, float* scratch) { \
    static_cast<void>(scratch);                                                  \
    if (check.on_cuda()) ATTN_CUDA_CALL(function, params, scratch);              \
    else cpu::function(params);                                                  \
  }
// How much: a function of the parameters alone.
#define ATTN_SCRATCH(function, Params)                              \
  int64_t function##_on(const Check& check, const Params& params) { \
    return check.on_cuda() ? cuda::function(params) : 0;            \
  }

ATTN_SCRATCH(attend_scratch, AttendParams)
ATTN_BACKEND_SCRATCH(attend_forward, AttendParams)
ATTN_BACKEND_SCRATCH(attend_backward, AttendBackwardParams)

ATTN_BACKEND(hip_select, SelectParams)
ATTN_BACKEND(layout_build, LayoutBuildParams)
ATTN_BACKEND(layout_transpose, LayoutTransposeParams)
ATTN_BACKEND(tiles_transpose, TilesTransposeParams)
ATTN_BACKEND(merge_states, MergeStatesParams)
ATTN_BACKEND(merge_states_backward, MergeStatesBackwardParams)

ATTN_SCRATCH(flow_scratch, FlowParams)
ATTN_BACKEND_SCRATCH(flow_forward, FlowParams)
ATTN_SCRATCH(flow_backward_scratch, FlowBackwardParams)
ATTN_BACKEND_SCRATCH(flow_backward, FlowBackwardParams)
ATTN_BACKEND(sum_groups, SumGroupsParams)
ATTN_BACKEND(flow_step, FlowStepParams)
ATTN_SCRATCH(linear_scratch, LinearParams)
ATTN_BACKEND_SCRATCH(linear_forward, LinearParams)
ATTN_SCRATCH(linear_backward_scratch, LinearBackwardParams)
ATTN_BACKEND_SCRATCH(linear_backward, LinearBackwardParams)
ATTN_SCRATCH(prefix_pool_scratch, PrefixPoolParams)
ATTN_BACKEND_SCRATCH(prefix_pool_forward, PrefixPoolParams)
ATTN_SCRATCH(prefix_pool_backward_scratch, PrefixPoolBackwardParams)
ATTN_BACKEND_SCRATCH(prefix_pool_backward, PrefixPoolBackwardParams)

ATTN_BACKEND(axis_gate_forward, AxisGateParams)
ATTN_SCRATCH(axis_gate_scratch, AxisGateBackwardParams)
ATTN_BACKEND_SCRATCH(axis_gate_backward, AxisGateBackwardParams)
ATTN_SCRATCH(topk_scratch, TopkNodesParams)
ATTN_BACKEND_SCRATCH(topk_nodes, TopkNodesParams)
ATTN_SCRATCH(query_pool_scratch, QueryPoolParams)
ATTN_BACKEND_SCRATCH(query_pool_forward, QueryPoolParams)
ATTN_SCRATCH(query_pool_scratch, QueryPoolBackwardParams)
ATTN_BACKEND_SCRATCH(query_pool_backward, QueryPoolBackwardParams)

ATTN_SCRATCH(ponet_forward_scratch, PonetParams)
ATTN_BACKEND_SCRATCH(ponet_forward, PonetParams)
ATTN_SCRATCH(ponet_backward_scratch, PonetBackwardParams)
ATTN_BACKEND_SCRATCH(ponet_backward, PonetBackwardParams)

ATTN_SCRATCH(segment_pool_forward_scratch, SegmentPoolParams)
ATTN_BACKEND_SCRATCH(segment_pool_forward, SegmentPoolParams)
ATTN_SCRATCH(segment_pool_backward_scratch, SegmentPoolBackwardParams)
ATTN_BACKEND_SCRATCH(segment_pool_backward, SegmentPoolBackwardParams)
void segment_ids_on(const Check& check, const cuda::SegmentIdsParams& params) {
  static_cast<void>(params);
  ATTN_CUDA_CALL(segment_ids, params);
}
void segment_offsets_on(const Check& check, const cuda::SegmentIdsParams& params, int64_t segments, int32_t* offsets) {
  static_cast<void>(params), static_cast<void>(segments), static_cast<void>(offsets);
  ATTN_CUDA_CALL(segment_offsets, params, segments, offsets);
}
ATTN_BACKEND(tap_pool_forward, TapPoolParams)
ATTN_BACKEND(tap_pool_backward, TapPoolBackwardParams)
ATTN_BACKEND(window_pool_forward, WindowPoolParams)
ATTN_BACKEND(window_pool_backward, WindowPoolBackwardParams)

}  // namespace attn::ops
