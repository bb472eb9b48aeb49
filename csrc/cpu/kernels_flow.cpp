// Compiled once per instruction set: flow attention.
#include "cpu/by_dtype.h"
#include "cpu/flow_backward.h"
#include "cpu/flow_causal_backward.h"
#include "cpu/flow_causal_forward.h"
#include "cpu/flow_forward.h"
#include "cpu/flow_step.h"
#include "cpu/kernels.h"
#include "cpu/sum_groups.h"

ATTN_NAMESPACE_BEGIN

void run_flow_forward(const FlowParams& params) {
  if (params.causal) scan::run_by_dtype<scan::FlowCausalForward>(params.dtype, params);
  else scan::run_by_dtype<scan::FlowForward>(params.dtype, params);
}
void run_flow_backward(const FlowBackwardParams& params) {
  if (params.forward.causal) scan::run_by_dtype<scan::FlowCausalBackward>(params.forward.dtype, params);
  else scan::run_by_dtype<scan::FlowBackward>(params.forward.dtype, params);
}
void run_flow_step(const FlowStepParams& params) { scan::run_by_dtype<scan::FlowStep>(params.dtype, params); }
void run_sum_groups(const SumGroupsParams& params) { scan::run_by_dtype<scan::SumGroups>(params.dtype, params); }

ATTN_NAMESPACE_END
