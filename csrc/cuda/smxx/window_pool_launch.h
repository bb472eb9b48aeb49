#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/window_pool.h"

namespace attn::cuda {

template <DType kType> void launch_window_pool(const WideCall<WindowPoolParams>& p, Stream stream) {
  launch<WindowPool<Element<kType>>>("window pooling", p, stream);
}

template <DType kType> void launch_window_pool_backward(const WideCall<WindowPoolBackwardParams>& p, Stream stream) {
  launch<WindowGradient<Element<kType>>>("window pooling backward", p, stream);
}

}  // namespace attn::cuda
