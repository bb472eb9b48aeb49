#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/axis_gate.h"

namespace attn::cuda {

template <DType kType> void launch_axis_gate_forward(const AxisGateParams& p, Stream stream) {
  launch<AxisGateForward<Element<kType>>>("axis_gate", p, stream);
}

template <DType kType> void launch_axis_gate_backward(const AxisGateSumsParams& s, Stream stream) {
  launch<AxisGateBackward<Element<kType>>>("axis_gate backward", s, stream);
  launch<AxisGateSums<Element<kType>>>("axis_gate backward, sums", s, stream);
}

}  // namespace attn::cuda
