// Sum of a gate per channel and a gate per time step.
#include "ops/backend.h"
#include "ops/pool_args.h"

namespace attn::ops {
namespace {

AxisGateParams arguments(const Check& check, const Tensor& x, const Tensor& channel, const Tensor& time) {
  AxisGateParams p{};
  p.x = token_view(check, x, "x", "[B, C, T]");
  p.dtype = check.floating(x, "x");
  p.batch = x.size(0);
  p.channels = x.size(1);
  p.time = x.size(2);
  const auto gate = [&](const Tensor& t, const char* name, int64_t size, const char* layout) {
    check.on_device(t, name);
    check.same_type(t, name, x, "x");
    check.shape(t, name, {p.batch, size}, layout);
    check.contiguous(t, name);
    return t.data_ptr();
  };
  p.channel_gate = gate(channel, "channel", p.channels, "[B, C]");
  p.time_gate = gate(time, "time", p.time, "[B, T]");
  return p;
}

Tensor axis_gate_forward(const Tensor& x, const Tensor& channel, const Tensor& time) {
  const Check check("axis_gate_forward", x);
  AxisGateParams p = arguments(check, x, channel, time);
  check_axis_gate_forward_on(check, p);
  Tensor out = gradient_like(x, true);
  p.out = out.data_ptr();
  if (out.numel() > 0) axis_gate_forward_on(check, p);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> axis_gate_backward(const Tensor& dout, const Tensor& x, const Tensor& channel,
                                                      const Tensor& time, const std::vector<bool>& wanted) {
  const Check check("axis_gate_backward", x);
  AxisGateBackwardParams b{};
  b.forward = arguments(check, x, channel, time);
  check.same_type(dout, "dout", x, "x");
  check.shape(dout, "dout", {x.size(0), x.size(1), x.size(2)}, "x");
  b.dout = token_view(check, dout, "dout", "[B, C, T]");
  wanted_count(check, wanted, 3);
  check_axis_gate_backward_on(check, b);
  Tensor dx = gradient_like(x, wanted[0]), dchannel = gradient_like(channel, wanted[1]);
  Tensor dtime = gradient_like(time, wanted[2]);
  b.dx = data_if(dx, wanted[0]);
  b.dchannel = data_if(dchannel, wanted[1]);
  b.dtime = data_if(dtime, wanted[2]);
  const Scratch scratch(x, axis_gate_scratch_on(check, b));
  axis_gate_backward_on(check, b, scratch.floats());
  return {dx, dchannel, dtime};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("axis_gate_forward", TORCH_BOX(&axis_gate_forward));
  m.impl("axis_gate_backward", TORCH_BOX(&axis_gate_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("axis_gate_forward", TORCH_BOX(&axis_gate_forward));
  m.impl("axis_gate_backward", TORCH_BOX(&axis_gate_backward));
}

}  // namespace attn::ops
