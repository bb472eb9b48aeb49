// The same for the pool family.
#include "cuda/choose.h"
#include "cuda/launchers.h"

namespace attn::cuda {
namespace {

struct AxisGateForwardOf {
  template <DType kType> static constexpr Launcher<AxisGateParams> of = launch_axis_gate_forward<kType>;
};
struct AxisGateBackwardOf {
  template <DType kType> static constexpr Launcher<AxisGateSumsParams> of = launch_axis_gate_backward<kType>;
};

auto choose(const AxisGateParams& p) { return by_type<AxisGateForwardOf>("axis_gate", p.dtype); }
auto choose(const AxisGateBackwardParams& b) {
  return by_type<AxisGateBackwardOf>("axis_gate backward", b.forward.dtype);
}

}  // namespace

void check_axis_gate_forward(const AxisGateParams& params) { choose(params); }
void axis_gate_forward(const AxisGateParams& params, Stream stream) { choose(params)(params, stream); }

void check_axis_gate_backward(const AxisGateBackwardParams& params) { choose(params); }
void axis_gate_backward(const AxisGateBackwardParams& params, float* scratch, Stream stream) {
  choose(params)(axis_gate_sums(params, scratch), stream);
}

}  // namespace attn::cuda
