// Entry points of the CPU backend for the pool family (dispatch.cpp has the others).
#include "cpu/kernels.h"

namespace attn::cpu {

void axis_gate_forward(const AxisGateParams& params) { kernels().pool.axis_gate_forward(params); }
void axis_gate_backward(const AxisGateBackwardParams& params) { kernels().pool.axis_gate_backward(params); }
void ponet_forward(const PonetParams& params) { kernels().pool.ponet_forward(params); }
void ponet_backward(const PonetBackwardParams& params) { kernels().pool.ponet_backward(params); }
void query_pool_forward(const QueryPoolParams& params) { kernels().pool.query_pool_forward(params); }
void query_pool_backward(const QueryPoolBackwardParams& params) { kernels().pool.query_pool_backward(params); }
void segment_pool_forward(const SegmentPoolParams& params) { kernels().pool.segment_pool_forward(params); }
void segment_pool_backward(const SegmentPoolBackwardParams& params) { kernels().pool.segment_pool_backward(params); }
void tap_pool_forward(const TapPoolParams& params) { kernels().pool.tap_pool_forward(params); }
void tap_pool_backward(const TapPoolBackwardParams& params) { kernels().pool.tap_pool_backward(params); }
void topk_nodes(const TopkNodesParams& params) { kernels().pool.topk_nodes(params); }
void window_pool_forward(const WindowPoolParams& params) { kernels().pool.window_pool_forward(params); }
void window_pool_backward(const WindowPoolBackwardParams& params) { kernels().pool.window_pool_backward(params); }

}  // namespace attn::cpu
