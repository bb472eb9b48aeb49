#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/flow_passes.h"
#include "cuda/smxx/sum_groups.h"

namespace attn::cuda {

template <DType kType> void launch_flow_forward(const FlowWork& w, Stream stream) {
  flow_forward_passes<Element<kType>>(
      w, [stream](auto kernel, const auto& params) { launch<decltype(kernel)>("flow attention", params, stream); });
}

template <DType kType> void launch_flow_backward(const FlowGradWork& w, Stream stream) {
  flow_backward_passes<Element<kType>>(w, [stream](auto kernel, const auto& params) {
    launch<decltype(kernel)>("flow attention backward", params, stream);
  });
}

template <DType kType> void launch_sum_groups(const SumGroupsParams& p, Stream stream) {
  launch<SumGroups<Element<kType>>>("sum over grouped heads", p, stream);
}

template <DType kType> void launch_flow_step(const FlowStepParams& p, Stream stream) {
  launch<FlowStep<Element<kType>>>("flow attention step", p, stream);
}

}  // namespace attn::cuda
