#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/tap_pool.h"

namespace attn::cuda {

template <DType kType> void launch_tap_pool(const WideCall<TapPoolParams>& p, Stream stream) {
  launch<TapForward<Element<kType>>>("tap pooling", p, stream);
}

template <DType kType> void launch_tap_pool_backward(const WideCall<TapPoolBackwardParams>& p, Stream stream) {
  launch<TapGradient<Element<kType>>>("tap pooling backward", p, stream);
  launch<TapWeightGradient<Element<kType>>>("tap pooling backward, weights", p, stream);
}

}  // namespace attn::cuda
