// The scan family's part of the table of CPU kernels (kernels.h).
#pragma once

#include "attn/flow.h"
#include "attn/scan.h"

namespace attn {

struct ScanKernels {
  void (*flow_forward)(const FlowParams&);
  void (*flow_backward)(const FlowBackwardParams&);
  void (*flow_step)(const FlowStepParams&);
  void (*linear_forward)(const LinearParams&);
  void (*linear_backward)(const LinearBackwardParams&);
  void (*prefix_pool_forward)(const PrefixPoolParams&);
  void (*prefix_pool_backward)(const PrefixPoolBackwardParams&);
  void (*sum_groups)(const SumGroupsParams&);
};

}  // namespace attn

ATTN_NAMESPACE_BEGIN

// kernels_flow.cpp
void run_flow_forward(const FlowParams& params);
void run_flow_backward(const FlowBackwardParams& params);
void run_flow_step(const FlowStepParams& params);
void run_sum_groups(const SumGroupsParams& params);
// kernels_linear.cpp
void run_linear_forward(const LinearParams& params);
void run_linear_backward(const LinearBackwardParams& params);
// kernels_prefix.cpp
void run_prefix_pool_forward(const PrefixPoolParams& params);
void run_prefix_pool_backward(const PrefixPoolBackwardParams& params);

constexpr ScanKernels scan_kernels = {
    .flow_forward = run_flow_forward,
    .flow_backward = run_flow_backward,
    .flow_step = run_flow_step,
    .linear_forward = run_linear_forward,
    .linear_backward = run_linear_backward,
    .prefix_pool_forward = run_prefix_pool_forward,
    .prefix_pool_backward = run_prefix_pool_backward,
    .sum_groups = run_sum_groups,
};

ATTN_NAMESPACE_END
