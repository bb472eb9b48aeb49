// Which instantiation serves a call, and what is said where none does.
#include <algorithm>
#include <string>

#include "cuda/choose.h"
#include "cuda/hip_nodes.h"
#include "cuda/launchers.h"
#include "cuda/refuse.h"
#include "cuda/sm90/serves.h"

namespace attn::cuda {
namespace {

const char* name_of(DType type) {
  switch (type) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
  }
  return "another dtype";
}

int attribute(const char* what, cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_result(what, cudaGetDevice(&device));
  check_result(what, cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

std::string device_text(const char* what) {
  return "sm_" + std::to_string(attribute(what, cudaDevAttrComputeCapabilityMajor)) +
         std::to_string(attribute(what, cudaDevAttrComputeCapabilityMinor));
}

// Few rows go another way than many.
struct AttendLaunchers {
  Launcher<AttendParams> many;
  Launcher<DecodeParams> few;
  Launcher<MergeSplitsParams> merge;
};
template <DType kType> struct AttendForwardOf {
  template <int kDim> static constexpr AttendLaunchers of = {launch_attend_forward<kType, kDim>,
                                                             launch_decode<kType, kDim>, launch_merge_splits<kType>};
};

AttendLaunchers choose(const AttendParams& p) {
  return by_type_and_dim<AttendForwardOf>("attention forward", "q, k and v", p.dtype, std::max(p.dim, p.dim_v));
}

#if ATTN_CUDA_SM90A
template <DType kType> struct AttendGroupsOf {
  template <int kDim> static constexpr Launcher<AttendParams> of = launch_attend_groups<kType, kDim>;
};
template <DType kType> struct GroupGradientsOf {
  template <int kDim> static constexpr Launcher<BackwardParams> of = launch_group_gradients<kType, kDim>;
};

bool on_hopper(const char* what) {
  return attribute(what, cudaDevAttrComputeCapabilityMajor) == 9 &&
         attribute(what, cudaDevAttrComputeCapabilityMinor) == 0;
}

template <template <DType> class Of> auto by_group(const AttendParams& p) {
  const bool bf16 = p.dtype == DType::bf16;
  if (p.dim == 64) return bf16 ? Of<DType::bf16>::template of<64> : Of<DType::f16>::template of<64>;
  return bf16 ? Of<DType::bf16>::template of<128> : Of<DType::f16>::template of<128>;
}
#endif

// The kernels for sm_90a, where this build and the current device have them and they serve the call; else null. They
// compute what those that `choose` finds do.
Launcher<AttendParams> choose_groups(const AttendParams& p) {
#if ATTN_CUDA_SM90A
  if (groups_serve(p) && on_hopper("attention forward")) return by_group<AttendGroupsOf>(p);
#endif
  static_cast<void>(p);
  return nullptr;
}
Launcher<BackwardParams> choose_groups(const AttendBackwardParams& b) {
#if ATTN_CUDA_SM90A
  if (groups_serve(b) && on_hopper("attention backward")) return by_group<GroupGradientsOf>(b.forward);
#endif
  static_cast<void>(b);
  return nullptr;
}

struct AttendBackwardLaunchers { Launcher<BackwardParams> delta, gradients; };
template <DType kType> struct AttendGradientsOf {
  template <int kDim> static constexpr AttendBackwardLaunchers of = {launch_attend_delta<kType>,
                                                                     launch_attend_gradients<kType, kDim>};
};

AttendBackwardLaunchers choose(const AttendBackwardParams& b) {
  const AttendParams& p = b.forward;
  return by_type_and_dim<AttendGradientsOf>("attention backward", "q, k and v", p.dtype, std::max(p.dim, p.dim_v));
}

template <DType kType> struct HipSelectOf {
  template <int kDim> static constexpr Launcher<SelectParams> of = launch_hip_select<kType, kDim>;
};

Launcher<SelectParams> choose(const SelectParams& p) {
  constexpr const char* what = "hip_select";
  if (const int64_t nodes = hip_nodes(p); nodes > kHipNodesAtMost) {
    refuse(what, "ceil(mask_k / block_size_k) must be at most ", kHipNodesAtMost, ", got ", nodes,
           "; use a smaller mask_k or a larger block_size_k, or move the tensors to the CPU");
  }
  return by_type_and_dim<HipSelectOf>(what, "q and k", p.dtype, p.dim);
}

struct MergeStatesOf {
  template <DType kType> static constexpr Launcher<MergeStatesParams> of = launch_merge_states<kType>;
};
struct MergeStatesBackwardOf {
  template <DType kType> static constexpr Launcher<MergeStatesBackwardParams> of = launch_merge_states_backward<kType>;
};

Launcher<MergeStatesParams> choose(const MergeStatesParams& p) {
  return by_type<MergeStatesOf>("merge_states", p.dtype);
}
Launcher<MergeStatesBackwardParams> choose(const MergeStatesBackwardParams& p) {
  return by_type<MergeStatesBackwardOf>("merge_states backward", p.dtype);
}

}  // namespace

void refuse_dtype(const char* what, DType given) {
  refuse(what, "supports float32, bfloat16 and float16, got ", name_of(given),
         "; convert with .to(torch.float32), or move the tensors to the CPU");
}

void check_launch(const char* what, const Grid& grid, size_t shared) {
  if (!grid.fits()) {
    refuse(what, "the call needs a grid of ", grid.x, " x ", grid.y, " x ", grid.z,
           " blocks, CUDA allows 2147483647 x 65535 x 65535; split it by batch or heads");
  }
  const int have = attribute(what, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (shared <= static_cast<size_t>(have)) return;
  refuse(what, "its kernel needs ", (shared + 1023) / 1024, " KiB of shared memory a block, this GPU (",
         device_text(what), ") has ", have / 1024,
         "; use head dimensions up to 128, or a GPU with more (sm_80, sm_87, sm_90, sm_100)");
}

void check_result(const char* what, cudaError_t result) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // an error of a launch isn't left for the next call to find
  if (result == cudaErrorNoKernelImageForDevice || result == cudaErrorInvalidDeviceFunction ||
      result == cudaErrorUnsupportedPtxVersion) {
    refuse(what, cudaGetErrorString(result),
           "; this build has kernels for architectures " ATTN_CUDA_ARCHS
           " (GPUs before sm_80 are not supported); build for yours: pip install . -Ccmake.define.ATTN_CUDA_ARCHS=...");
  }
  refuse(what, cudaGetErrorString(result), " (", cudaGetErrorName(result), ")");
}

#define ATTN_CUDA_OP(function, Params)                                                   \
  void function(const Params& params, Stream stream) { choose(params)(params, stream); } \
  void check_##function(const Params& params) { choose(params); }
ATTN_CUDA_OP(hip_select, SelectParams)
ATTN_CUDA_OP(merge_states, MergeStatesParams)
ATTN_CUDA_OP(merge_states_backward, MergeStatesBackwardParams)
#undef ATTN_CUDA_OP

void attend_forward(const AttendParams& params, float* scratch, Stream stream) {
  const AttendLaunchers chosen = choose(params);
  if (!few_rows(params)) {
    const Launcher<AttendParams> groups = choose_groups(params);
    return (groups ? groups : chosen.many)(params, stream);
  }
  const DecodeParams decode = decode_params(params, scratch);
  chosen.few(decode, stream);
  if (decode.splits > 1) chosen.merge(merge_params(decode), stream);
}
void attend_backward(const AttendBackwardParams& params, float* scratch, Stream stream) {
  const AttendBackwardLaunchers launch = choose(params);
  const BackwardParams b{params, scratch};
  launch.delta(b, stream);
  launch_sink_gradients<DType::f32>(b, stream);
  const Launcher<BackwardParams> groups = choose_groups(params);
  (groups ? groups : launch.gradients)(b, stream);
}
void check_attend_backward(const AttendBackwardParams& params) { choose(params); }

void check_attend_forward(const AttendParams& params) { choose(params); }

}  // namespace attn::cuda
