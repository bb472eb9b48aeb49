// Entry points of the CPU backend for the scan family (dispatch.cpp).
#include "cpu/kernels.h"

namespace attn::cpu {

void flow_forward(const FlowParams& params) { kernels().scan.flow_forward(params); }
void flow_backward(const FlowBackwardParams& params) { kernels().scan.flow_backward(params); }
void flow_step(const FlowStepParams& params) { kernels().scan.flow_step(params); }
void linear_forward(const LinearParams& params) { kernels().scan.linear_forward(params); }
void linear_backward(const LinearBackwardParams& params) { kernels().scan.linear_backward(params); }
void prefix_pool_forward(const PrefixPoolParams& params) { kernels().scan.prefix_pool_forward(params); }
void prefix_pool_backward(const PrefixPoolBackwardParams& params) { kernels().scan.prefix_pool_backward(params); }
void sum_groups(const SumGroupsParams& params) { kernels().scan.sum_groups(params); }

}  // namespace attn::cpu
