// Calls the kernels of the device that a call's tensors are on. check_*_on refuses what there is no kernel for, before
// results are allocated.
#pragma once

#include "attn/cpu.h"
#include "attn/flow.h"
#include "attn/layout.h"
#include "attn/merge.h"
#include "attn/pool.h"
#include "attn/scan.h"
#include "cuda/segment_call.h"
#include "ops/check.h"

namespace attn::ops {

void check_attend_forward_on(const Check& check, const AttendParams& params);
// Floats that attend_forward_on wants as scratch memory.
int64_t attend_scratch_on(const Check& check, const AttendParams& params);
void attend_forward_on(const Check& check, const AttendParams& params, float* scratch);

void check_hip_select_on(const Check& check, const SelectParams& params);
void hip_select_on(const Check& check, const SelectParams& params);

void check_attend_backward_on(const Check& check, const AttendBackwardParams& params);
// scratch: [B, H, Tq] floats where the tensors are on a GPU.
void attend_backward_on(const Check& check, const AttendBackwardParams& params, float* scratch);

void check_layout_build_on(const Check& check, const LayoutBuildParams& params);
void layout_build_on(const Check& check, const LayoutBuildParams& params);
void check_layout_transpose_on(const Check& check, const LayoutTransposeParams& params);
void layout_transpose_on(const Check& check, const LayoutTransposeParams& params);
void check_tiles_transpose_on(const Check& check, const TilesTransposeParams& params);
void tiles_transpose_on(const Check& check, const TilesTransposeParams& params);

void check_merge_states_on(const Check& check, const MergeStatesParams& params);
void merge_states_on(const Check& check, const MergeStatesParams& params);

void check_merge_states_backward_on(const Check& check, const MergeStatesBackwardParams& params);
void merge_states_backward_on(const Check& check, const MergeStatesBackwardParams& params);

// scratch: flow_scratch_on floats.
void check_flow_forward_on(const Check& check, const FlowParams& params);
int64_t flow_scratch_on(const Check& check, const FlowParams& params);
void flow_forward_on(const Check& check, const FlowParams& params, float* scratch);
void check_flow_backward_on(const Check& check, const FlowBackwardParams& params);
int64_t flow_backward_scratch_on(const Check& check, const FlowBackwardParams& params);
void flow_backward_on(const Check& check, const FlowBackwardParams& params, float* scratch);
void check_sum_groups_on(const Check& check, const SumGroupsParams& params);
void sum_groups_on(const Check& check, const SumGroupsParams& params);
void check_flow_step_on(const Check& check, const FlowStepParams& params);
void flow_step_on(const Check& check, const FlowStepParams& params);
// scratch: linear_scratch_on and linear_backward_scratch_on floats.
void check_linear_forward_on(const Check& check, const LinearParams& params);
int64_t linear_scratch_on(const Check& check, const LinearParams& params);
void linear_forward_on(const Check& check, const LinearParams& params, float* scratch);
void check_linear_backward_on(const Check& check, const LinearBackwardParams& params);
int64_t linear_backward_scratch_on(const Check& check, const LinearBackwardParams& params);
void linear_backward_on(const Check& check, const LinearBackwardParams& params, float* scratch);

// scratch: prefix_pool_scratch_on and prefix_pool_backward_scratch_on floats.
void check_prefix_pool_forward_on(const Check& check, const PrefixPoolParams& params);
int64_t prefix_pool_scratch_on(const Check& check, const PrefixPoolParams& params);
void prefix_pool_forward_on(const Check& check, const PrefixPoolParams& params, float* scratch);
void check_prefix_pool_backward_on(const Check& check, const PrefixPoolBackwardParams& params);
int64_t prefix_pool_backward_scratch_on(const Check& check, const PrefixPoolBackwardParams& params);
void prefix_pool_backward_on(const Check& check, const PrefixPoolBackwardParams& params, float* scratch);

// scratch: axis_gate_scratch_on floats.
void check_axis_gate_forward_on(const Check& check, const AxisGateParams& params);
void axis_gate_forward_on(const Check& check, const AxisGateParams& params);
void check_axis_gate_backward_on(const Check& check, const AxisGateBackwardParams& params);
int64_t axis_gate_scratch_on(const Check& check, const AxisGateBackwardParams& params);
void axis_gate_backward_on(const Check& check, const AxisGateBackwardParams& params, float* scratch);

// scratch: topk_scratch_on floats.
void check_topk_nodes_on(const Check& check, const TopkNodesParams& params);
int64_t topk_scratch_on(const Check& check, const TopkNodesParams& params);
void topk_nodes_on(const Check& check, const TopkNodesParams& params, float* scratch);

// scratch: query_pool_scratch_on floats.
void check_query_pool_forward_on(const Check& check, const QueryPoolParams& params);
int64_t query_pool_scratch_on(const Check& check, const QueryPoolParams& params);
void query_pool_forward_on(const Check& check, const QueryPoolParams& params, float* scratch);
void check_query_pool_backward_on(const Check& check, const QueryPoolBackwardParams& params);
int64_t query_pool_scratch_on(const Check& check, const QueryPoolBackwardParams& params);
void query_pool_backward_on(const Check& check, const QueryPoolBackwardParams& params, float* scratch);

// scratch: ponet_*_scratch_on floats.
void check_ponet_forward_on(const Check& check, const PonetParams& params);
int64_t ponet_forward_scratch_on(const Check& check, const PonetParams& params);
void ponet_forward_on(const Check& check, const PonetParams& params, float* scratch);
void check_ponet_backward_on(const Check& check, const PonetBackwardParams& params);
int64_t ponet_backward_scratch_on(const Check& check, const PonetBackwardParams& params);
void ponet_backward_on(const Check& check, const PonetBackwardParams& params, float* scratch);

// scratch: *_scratch_on floats.
void check_segment_pool_forward_on(const Check& check, const SegmentPoolParams& params);
int64_t segment_pool_forward_scratch_on(const Check& check, const SegmentPoolParams& params);
void segment_pool_forward_on(const Check& check, const SegmentPoolParams& params, float* scratch);
void check_segment_pool_backward_on(const Check& check, const SegmentPoolBackwardParams& params);
int64_t segment_pool_backward_scratch_on(const Check& check, const SegmentPoolBackwardParams& params);
void segment_pool_backward_on(const Check& check, const SegmentPoolBackwardParams& params, float* scratch);
// Of CUDA tensors: ids as kernels take them, and where each id's tokens begin, [B, segments + 1].
void segment_ids_on(const Check& check, const cuda::SegmentIdsParams& params);
void segment_offsets_on(const Check& check, const cuda::SegmentIdsParams& params, int64_t segments, int32_t* offsets);

void check_tap_pool_forward_on(const Check& check, const TapPoolParams& params);
void tap_pool_forward_on(const Check& check, const TapPoolParams& params);
void check_tap_pool_backward_on(const Check& check, const TapPoolBackwardParams& params);
void tap_pool_backward_on(const Check& check, const TapPoolBackwardParams& params);

void check_window_pool_forward_on(const Check& check, const WindowPoolParams& params);
void window_pool_forward_on(const Check& check, const WindowPoolParams& params);
void check_window_pool_backward_on(const Check& check, const WindowPoolBackwardParams& params);
void window_pool_backward_on(const Check& check, const WindowPoolBackwardParams& params);

}  // namespace attn::ops
