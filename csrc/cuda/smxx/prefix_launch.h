#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/prefix_steps.h"

namespace attn::cuda {

template <DType kType> void launch_prefix_pool(const PrefixWork& w, Stream stream) {
  prefix_pool_steps<Element<kType>>(w, [stream](auto kernel, const auto& params) {
    launch<decltype(kernel)>("prefix-softmax pooling", params, stream);
  });
}

template <DType kType> void launch_prefix_pool_backward(const PrefixGradWork& g, Stream stream) {
  prefix_pool_backward_steps<Element<kType>>(g, [stream](auto kernel, const auto& params) {
    launch<decltype(kernel)>("prefix-softmax pooling backward", params, stream);
  });
}

}  // namespace attn::cuda
