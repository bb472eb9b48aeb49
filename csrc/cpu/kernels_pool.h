// The pool family's part of the table of CPU kernels (kernels.h).
#pragma once

#include "attn/pool.h"

namespace attn {

struct PoolKernels {
  void (*axis_gate_forward)(const AxisGateParams&);
  void (*axis_gate_backward)(const AxisGateBackwardParams&);
  void (*ponet_forward)(const PonetParams&);
  void (*ponet_backward)(const PonetBackwardParams&);
  void (*query_pool_forward)(const QueryPoolParams&);
  void (*query_pool_backward)(const QueryPoolBackwardParams&);
  void (*segment_pool_forward)(const SegmentPoolParams&);
  void (*segment_pool_backward)(const SegmentPoolBackwardParams&);
  void (*tap_pool_forward)(const TapPoolParams&);
  void (*tap_pool_backward)(const TapPoolBackwardParams&);
  void (*topk_nodes)(const TopkNodesParams&);
  void (*window_pool_forward)(const WindowPoolParams&);
  void (*window_pool_backward)(const WindowPoolBackwardParams&);
};

}  // namespace attn

ATTN_NAMESPACE_BEGIN

// kernels_pool.cpp
void run_axis_gate_forward(const AxisGateParams& params);
void run_axis_gate_backward(const AxisGateBackwardParams& params);
void run_ponet_forward(const PonetParams& params);
void run_ponet_backward(const PonetBackwardParams& params);
void run_segment_pool_forward(const SegmentPoolParams& params);
void run_segment_pool_backward(const SegmentPoolBackwardParams& params);
void run_tap_pool_forward(const TapPoolParams& params);
void run_tap_pool_backward(const TapPoolBackwardParams& params);
void run_topk_nodes(const TopkNodesParams& params);
void run_window_pool_forward(const WindowPoolParams& params);
void run_window_pool_backward(const WindowPoolBackwardParams& params);
// kernels_query_pool.cpp
void run_query_pool_forward(const QueryPoolParams& params);
void run_query_pool_backward(const QueryPoolBackwardParams& params);

constexpr PoolKernels pool_kernels = {
    .axis_gate_forward = run_axis_gate_forward,
    .axis_gate_backward = run_axis_gate_backward,
    .ponet_forward = run_ponet_forward,
    .ponet_backward = run_ponet_backward,
    .query_pool_forward = run_query_pool_forward,
    .query_pool_backward = run_query_pool_backward,
    .segment_pool_forward = run_segment_pool_forward,
    .segment_pool_backward = run_segment_pool_backward,
    .tap_pool_forward = run_tap_pool_forward,
    .tap_pool_backward = run_tap_pool_backward,
    .topk_nodes = run_topk_nodes,
    .window_pool_forward = run_window_pool_forward,
    .window_pool_backward = run_window_pool_backward,
};

ATTN_NAMESPACE_END
