// The instantiations that launch.cu chooses from. Each is a translation unit of its own, written by cmake/cuda.cmake
// from its table.
#pragma once

#include "cuda/axis_gate_parts.h"
#include "cuda/backward_params.h"
#include "cuda/flow_grad_work.h"
#include "cuda/launch.h"
#include "cuda/ponet_grad_work.h"
#include "cuda/prefix_work.h"
#include "cuda/query_pool_parts.h"
#include "cuda/scan_params.h"
#include "cuda/topk_parts.h"
#include "cuda/wide_rows.h"

namespace attn::cuda {

struct ChunkScanParams;

template <DType kType, int kDim> void launch_attend_forward(const AttendParams& params, Stream stream);
template <DType kType, int kDim> void launch_attend_groups(const AttendParams& params, Stream stream);  // sm_90a
template <DType kType, int kDim> void launch_decode(const DecodeParams& params, Stream stream);
template <DType kType, int kDim> void launch_hip_select(const SelectParams& params, Stream stream);
template <DType kType> void launch_merge_splits(const MergeSplitsParams& params, Stream stream);
template <DType kType, int kDim> void launch_attend_gradients(const BackwardParams& params, Stream stream);
template <DType kType, int kDim> void launch_group_gradients(const BackwardParams& params, Stream stream);  // sm_90a
template <DType kType> void launch_attend_delta(const BackwardParams& params, Stream stream);
// kType: of lse.
template <DType kType> void launch_sink_gradients(const BackwardParams& params, Stream stream);
template <DType kType> void launch_merge_states(const MergeStatesParams& params, Stream stream);
template <DType kType> void launch_merge_states_backward(const MergeStatesBackwardParams& params, Stream stream);

// kType: none of their kernels' business.
template <DType kType> void launch_layout_build(const LayoutBuildParams& params, Stream stream);
template <DType kType> void launch_layout_transpose(const LayoutTransposeParams& params, Stream stream);
template <DType kType> void launch_tiles_transpose(const TilesTransposeParams& params, Stream stream);

// kType: of states.
template <DType kType> void launch_chunk_scan(const ChunkScanParams& params, Stream stream);
template <DType kType> void launch_segment_sums(const SegmentSumsParams& params, Stream stream);
template <DType kType> void launch_scan_product(const ScanProductParams& params, Stream stream);
template <DType kType> void launch_linear_delta(const LinearDeltaParams& params, Stream stream);
template <DType kType> void launch_prefix_pool(const PrefixWork& work, Stream stream);
template <DType kType> void launch_prefix_pool_backward(const PrefixGradWork& work, Stream stream);

template <DType kType> void launch_axis_gate_forward(const AxisGateParams& params, Stream stream);
template <DType kType> void launch_axis_gate_backward(const AxisGateSumsParams& params, Stream stream);
template <DType kType> void launch_topk_nodes(const TopkPass& params, Stream stream);
template <DType kType> void launch_query_pool_forward(const QueryPoolForward& params, Stream stream);
template <DType kType> void launch_query_pool_backward(const QueryPoolBackward& params, Stream stream);

template <DType kType> void launch_flow_forward(const FlowWork& work, Stream stream);
template <DType kType> void launch_flow_backward(const FlowGradWork& work, Stream stream);
template <DType kType> void launch_sum_groups(const SumGroupsParams& params, Stream stream);
template <DType kType> void launch_flow_step(const FlowStepParams& params, Stream stream);
template <DType kType> void launch_ponet_forward(const PonetWork& work, Stream stream);
template <DType kType> void launch_ponet_backward(const PonetGradWork& work, Stream stream);
template <DType kType> void launch_segment_pool(const SegmentForwardParams& params, Stream stream);
template <DType kType> void launch_segment_pool_backward(const SegmentBackwardParams& params, Stream stream);
// kType: none of its kernels' business.
template <DType kType> void launch_segment_ids(const SegmentIdsParams& params, Stream stream);
template <DType kType> void launch_segment_offsets(const SegmentOffsetsParams& params, Stream stream);
template <DType kType> void launch_tap_pool(const WideCall<TapPoolParams>& params, Stream stream);
template <DType kType> void launch_tap_pool_backward(const WideCall<TapPoolBackwardParams>& params, Stream stream);
template <DType kType> void launch_window_pool(const WideCall<WindowPoolParams>& params, Stream stream);
template <DType kType> void launch_window_pool_backward(const WideCall<WindowPoolBackwardParams>& params,
                                                        Stream stream);

}  // namespace attn::cuda
