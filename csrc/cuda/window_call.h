// Arguments of the window pooling kernels.
#pragma once

#include "cuda/wide_rows.h"

namespace attn::cuda {

constexpr int kWindowTokens = 32;  // of a tile, whose neighbours read a window's reach of its rows again

struct WindowForwardParams {
  WindowPoolParams p;
  bool wide;  // rows of 16 bytes (vectors.h)
};

struct WindowBackwardParams {
  WindowPoolBackwardParams b;
  bool wide;
};

inline WindowForwardParams window_forward_params(const WindowPoolParams& p) {
  return {p, wide_rows(p.dtype, p.channels, {p.x})};
}
inline WindowBackwardParams window_backward_params(const WindowPoolBackwardParams& b) {
  return {b, wide_rows(b.forward.dtype, b.forward.channels, {b.forward.x, b.dout})};
}

}  // namespace attn::cuda
