// Arguments of the token-aware pooling kernels.
#pragma once

#include "cuda/wide_rows.h"

namespace attn::cuda {

struct TapForwardParams {
  TapPoolParams p;
  bool wide;  // rows of 16 bytes (vectors.h)
};

struct TapBackwardParams {
  TapPoolBackwardParams b;
  bool wide;
};

inline TapForwardParams tap_forward_params(const TapPoolParams& p) {
  return {p, wide_rows(p.dtype, p.channels, {p.x})};
}
inline TapBackwardParams tap_backward_params(const TapPoolBackwardParams& b) {
  return {b, wide_rows(b.forward.dtype, b.forward.channels, {b.forward.x, b.dout})};
}

}  // namespace attn::cuda
