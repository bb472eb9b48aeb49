// Window pooling.
#include "ops/backend.h"
#include "ops/pool_args.h"

namespace attn::ops {
namespace {

// x: or, of a mean's gradient, dout, which has the same sizes.
WindowPoolParams arguments(const Check& check, const Tensor& x, const char* name, int64_t window, const Text& reduce,
                           int64_t dilation, const OptionalTensor& mask, const OptionalTensor& cu_seqlens,
                           bool count_include_pad) {
  WindowPoolParams p{};
  p.x = token_view(check, x, name);
  p.dtype = check.floating(x, name);
  p.channels = x.size(2);
  p.sequences = sequences(check, x.size(0), x.size(1), cu_seqlens);
  check.require(reduce == "max" || reduce == "mean", "reduce must be 'max' or 'mean', got '", reduce.value, "'");
  p.mean = reduce == "mean";
  check.require(window >= 1 && window % 2 == 1 && window < INT32_MAX, "window must be odd and positive, got ", window);
  check.require(dilation >= 1 && dilation < INT32_MAX, "dilation must be positive, got ", dilation);
  p.window = window;
  p.dilation = dilation;
  p.mask = mask_argument(check, mask, "mask", x.size(0), x.size(1));
  p.count_include_pad = count_include_pad;
  return p;
}

Tensor window_pool_forward(const Tensor& x, int64_t window, const Text& reduce, int64_t dilation,
                           const OptionalTensor& mask, const OptionalTensor& cu_seqlens, bool count_include_pad) {
  const Check check("window_pool_forward", x);
  WindowPoolParams p = arguments(check, x, "x", window, reduce, dilation, mask, cu_seqlens, count_include_pad);
  check_window_pool_forward_on(check, p);
  Tensor out = gradient_like(x, true);
  p.out = out.data_ptr();
  if (out.numel() > 0) window_pool_forward_on(check, p);
  return out;
}

// Only a maximum's gradient reads x.
Tensor window_pool_backward(const Tensor& dout, const OptionalTensor& x, int64_t window, const Text& reduce,
                            int64_t dilation, const OptionalTensor& mask, const OptionalTensor& cu_seqlens,
                            bool count_include_pad) {
  const Check check("window_pool_backward", dout);
  check.require(x || reduce == "mean", "x must be given for the gradient of a maximum");
  WindowPoolBackwardParams b{};
  b.forward =
      arguments(check, x ? *x : dout, x ? "x" : "dout", window, reduce, dilation, mask, cu_seqlens, count_include_pad);
  b.dout = x ? token_view_like(check, dout, "dout", *x, "x") : b.forward.x;
  if (b.forward.mean) b.forward.x = {nullptr, 0, 0};
  check_window_pool_backward_on(check, b);
  Tensor dx = gradient_like(dout, true);
  b.dx = dx.data_ptr();
  if (dx.numel() > 0) window_pool_backward_on(check, b);
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) {
  m.impl("window_pool_forward", TORCH_BOX(&window_pool_forward));
  m.impl("window_pool_backward", TORCH_BOX(&window_pool_backward));
}

STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) {
  m.impl("window_pool_forward", TORCH_BOX(&window_pool_forward));
  m.impl("window_pool_backward", TORCH_BOX(&window_pool_backward));
}

}  // namespace attn::ops
