#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm80/query_pool_run.h"

namespace attn::cuda {

inline auto pool_launch(Stream stream) {
  return [stream]<class K>(PoolKernel<K>, const char* name, const typename K::Params& params) {
    launch<K>(name, params, stream);
  };
}

template <DType kType> void launch_query_pool_forward(const QueryPoolForward& f, Stream stream) {
  run_query_pool_forward<Element<kType>>(f, pool_launch(stream));
}

template <DType kType> void launch_query_pool_backward(const QueryPoolBackward& b, Stream stream) {
  run_query_pool_backward<Element<kType>>(b, pool_launch(stream));
}

}  // namespace attn::cuda
