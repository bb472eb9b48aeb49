// Token-aware average pooling.
#include "ops/backend.h"
#include "ops/pool_args.h"

namespace attn::ops {
namespace {

TapPoolParams arguments(const Check& check, const Tensor& x, const Tensor& weights, int64_t height, int64_t width,
                        const std::vector<int64_t>& dilations) {
  TapPoolParams p{};
  p.x = token_view(check, x, "x", "[B, height * width, C]");
  p.dtype = check.floating(x, "x");
  p.batch = x.size(0);
  p.channels = x.size(2);
  p.height = height;
  p.width = width;
  const bool fits = height >= 0 && width >= 0 && (height == 0 || width <= x.size(1) / height);  // no overflow below
  check.require(fits && height * width == x.size(1), "height * width must be the number of tokens (", x.size(1),
                "), got ", height, " * ", width);
  check.length(x.size(1), "the number of tokens");
  p.scales = static_cast<int64_t>(dilations.size());
  check.require(p.scales >= 1 && p.scales <= kMaxDilations, "dilations must hold 1 to ", kMaxDilations,
                " numbers, got ", p.scales);
  for (int64_t i = 0; i < p.scales; ++i) {
    check.require(dilations[i] >= 0 && dilations[i] < INT32_MAX, "dilations must be >= 0, got ", dilations[i]);
    p.dilation[i] = static_cast<int32_t>(dilations[i]);
  }
  check.on_device(weights, "weights");
  check.same_type(weights, "weights", x, "x");
  check.shape(weights, "weights", {p.batch, x.size(1), p.scales}, "[B, height * width, dilations]");
  p.weights = token_view(check, weights, "weights", "[B, height * width, dilations]");
  return p;
}

Tensor tap_pool_forward(const Tensor& x, const Tensor& weights, int64_t height, int64_t width,
                        const std::vector<int64_t>& dilations) {
  const Check check("tap_pool_forward", x);
  TapPoolParams p = arguments(check, x, weights, height, width, dilations);
  check_tap_pool_forward_on(check, p);
  Tensor out = gradient_like(x, true);
  p.out = out.data_ptr();
  if (out.numel() > 0) tap_pool_forward_on(check, p);
  return out;
}

std::tuple<Tensor, Tensor> tap_pool_backward(const Tensor& dout, const Tensor& x, const Tensor& weights,
                                             const std::vector<bool>& wanted, int64_t height, int64_t width,
                                             const std::vector<int64_t>& dilations) {
  const Check check("tap_pool_backward", x);
  TapPoolBackwardParams b{};
  b.forward = arguments(check, x, weights, height, width, dilations);
  b.dout = token_view_like(check, dout, "dout", x, "x");
  wanted_count(check, wanted, 2);
  check_tap_pool_backward_on(check, b);
  Tensor dx = gradient_like(x, wanted[0]), dweights = gradient_like(weights, wanted[1]);
  b.dx = data_if(dx, wanted[0]);
  b.dweights = data_if(dweights, wanted[1]);
  if (x.size(0) * x.size(1) > 0) tap_pool_backward_on(check, b);
  return {dx, dweights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("tap_pool_forward", TORCH_BOX(&tap_pool_forward));
  m.impl("tap_pool_backward", TORCH_BOX(&tap_pool_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("tap_pool_forward", TORCH_BOX(&tap_pool_forward));
  m.impl("tap_pool_backward", TORCH_BOX(&tap_pool_backward));
}

}  // namespace attn::ops
