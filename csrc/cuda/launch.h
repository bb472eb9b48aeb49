// The CUDA backend as csrc/ops sees it: like include/attn/cpu.h, on a stream. Everything is asynchronous: no
// synchronisation and no allocation, so calls can be captured in a CUDA graph. The current device must be the stream's.
// What this build has no kernel for, or the GPU can't run, throws std::runtime_error before anything is launched.
#pragma once

#include "attn/flow.h"
#include "attn/layout.h"
#include "attn/merge.h"
#include "attn/params.h"
#include "attn/pool.h"
#include "attn/scan.h"
#include "cuda/decode_split.h"
#include "cuda/segment_call.h"

// As cuda_runtime.h has it.
struct CUstream_st;

namespace attn::cuda {

using Stream = CUstream_st*;

// f32, f16 and bf16, head dimensions up to the largest of the build (256 unless configured otherwise). scratch:
// attend_scratch(params) floats on the device. On sm_90 some calls take kernels of their own (sm90/serves.h).
void attend_forward(const AttendParams& params, float* scratch, Stream stream);
// scratch: [B, H, Tq] floats on the device.
void attend_backward(const AttendBackwardParams& params, float* scratch, Stream stream);

// The same dtypes and head dimensions, searches of up to kHipNodesAtMost nodes.
void hip_select(const SelectParams& params, Stream stream);

// f32, f16 and bf16.
void merge_states(const MergeStatesParams& params, Stream stream);
void merge_states_backward(const MergeStatesBackwardParams& params, Stream stream);

// f32, f16 and bf16. scratch: linear_scratch(params) and linear_backward_scratch(params) floats on the device.
void linear_forward(const LinearParams& params, float* scratch, Stream stream);
void linear_backward(const LinearBackwardParams& params, float* scratch, Stream stream);

// What is out of range in a list is left out.
void layout_build(const LayoutBuildParams& params, Stream stream);
void layout_transpose(const LayoutTransposeParams& params, Stream stream);
void tiles_transpose(const TilesTransposeParams& params, Stream stream);

// f32, f16 and bf16. scratch: axis_gate_scratch(params) floats on the device.
void axis_gate_forward(const AxisGateParams& params, Stream stream);
void axis_gate_backward(const AxisGateBackwardParams& params, float* scratch, Stream stream);

// f32, f16 and bf16. scratch: topk_scratch(params) floats on the device.
void topk_nodes(const TopkNodesParams& params, float* scratch, Stream stream);

// f32, f16 and bf16. scratch: query_pool_scratch(params) floats on the device.
void query_pool_forward(const QueryPoolParams& params, float* scratch, Stream stream);
void query_pool_backward(const QueryPoolBackwardParams& params, float* scratch, Stream stream);

// f32, f16 and bf16. scratch: prefix_pool_scratch(params) and prefix_pool_backward_scratch(params) floats.
void prefix_pool_forward(const PrefixPoolParams& params, float* scratch, Stream stream);
void prefix_pool_backward(const PrefixPoolBackwardParams& params, float* scratch, Stream stream);

// f32, f16 and bf16, head dimensions up to 256. scratch: flow_scratch(params) floats on the device.
void flow_forward(const FlowParams& params, float* scratch, Stream stream);
// scratch: flow_backward_scratch(params) floats.
void flow_backward(const FlowBackwardParams& params, float* scratch, Stream stream);
void flow_step(const FlowStepParams& params, Stream stream);
void sum_groups(const SumGroupsParams& params, Stream stream);
// f32, f16 and bf16. scratch: ponet_*_scratch(params) floats on the device.
void ponet_forward(const PonetParams& params, float* scratch, Stream stream);
void ponet_backward(const PonetBackwardParams& params, float* scratch, Stream stream);

// f32, f16 and bf16; offsets may be null, for one segment. scratch: segment_pool_*_scratch(params) floats.
void segment_pool_forward(const SegmentPoolParams& params, float* scratch, Stream stream);
void segment_pool_backward(const SegmentPoolBackwardParams& params, float* scratch, Stream stream);
void segment_ids(const SegmentIdsParams& params, Stream stream);
// The same, and where each id's tokens begin: [B, segments + 1].
void segment_offsets(const SegmentIdsParams& params, int64_t segments, int32_t* offsets, Stream stream);

// f32, f16 and bf16.
void tap_pool_forward(const TapPoolParams& params, Stream stream);
void tap_pool_backward(const TapPoolBackwardParams& params, Stream stream);
void window_pool_forward(const WindowPoolParams& params, Stream stream);
void window_pool_backward(const WindowPoolBackwardParams& params, Stream stream);

// Throws what the call would for its dtype and head dimensions, whatever the machine; reads no pointer.
void check_attend_forward(const AttendParams& params);
void check_hip_select(const SelectParams& params);
void check_attend_backward(const AttendBackwardParams& params);
void check_layout_build(const LayoutBuildParams& params);
void check_layout_transpose(const LayoutTransposeParams& params);
void check_tiles_transpose(const TilesTransposeParams& params);
void check_merge_states(const MergeStatesParams& params);
void check_merge_states_backward(const MergeStatesBackwardParams& params);
void check_flow_forward(const FlowParams& params);
void check_flow_backward(const FlowBackwardParams& params);
void check_sum_groups(const SumGroupsParams& params);
void check_flow_step(const FlowStepParams& params);
void check_linear_forward(const LinearParams& params);
void check_linear_backward(const LinearBackwardParams& params);
void check_prefix_pool_forward(const PrefixPoolParams& params);
void check_prefix_pool_backward(const PrefixPoolBackwardParams& params);
void check_axis_gate_forward(const AxisGateParams& params);
void check_axis_gate_backward(const AxisGateBackwardParams& params);
void check_topk_nodes(const TopkNodesParams& params);
void check_query_pool_forward(const QueryPoolParams& params);
void check_query_pool_backward(const QueryPoolBackwardParams& params);
void check_ponet_forward(const PonetParams& params);
void check_ponet_backward(const PonetBackwardParams& params);
void check_segment_pool_forward(const SegmentPoolParams& params);
void check_segment_pool_backward(const SegmentPoolBackwardParams& params);
void check_tap_pool_forward(const TapPoolParams& params);
void check_tap_pool_backward(const TapPoolBackwardParams& params);
void check_window_pool_forward(const WindowPoolParams& params);
void check_window_pool_backward(const WindowPoolBackwardParams& params);

}  // namespace attn::cuda
