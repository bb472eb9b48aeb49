// Compiled once per instruction set: pooling over tokens.
#include "cpu/axis_gate.h"
#include "cpu/kernels.h"
#include "cpu/ponet_grad.h"
#include "cpu/segment_pool_grad.h"
#include "cpu/tap_pool.h"
#include "cpu/topk_nodes.h"
#include "cpu/window_pool.h"

ATTN_NAMESPACE_BEGIN

void run_axis_gate_forward(const AxisGateParams& params) { axis_gate_forward(params); }
void run_axis_gate_backward(const AxisGateBackwardParams& params) { axis_gate_backward(params); }
void run_ponet_forward(const PonetParams& params) { ponet_forward(params); }
void run_ponet_backward(const PonetBackwardParams& params) { ponet_backward(params); }
void run_segment_pool_forward(const SegmentPoolParams& params) { segment_pool_forward(params); }
void run_segment_pool_backward(const SegmentPoolBackwardParams& params) { segment_pool_backward(params); }
void run_tap_pool_forward(const TapPoolParams& params) { tap_pool_forward(params); }
void run_tap_pool_backward(const TapPoolBackwardParams& params) { tap_pool_backward(params); }
void run_topk_nodes(const TopkNodesParams& params) { topk_nodes(params); }
void run_window_pool_forward(const WindowPoolParams& params) { window_pool_forward(params); }
void run_window_pool_backward(const WindowPoolBackwardParams& params) { window_pool_backward(params); }

ATTN_NAMESPACE_END
