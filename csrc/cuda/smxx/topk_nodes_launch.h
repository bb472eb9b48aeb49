#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/topk_nodes.h"

namespace attn::cuda {

template <DType kType> void launch_topk_nodes(const TopkPass& p, Stream stream) {
  run_topk_nodes<Element<kType>>(
      p, [stream]<class K>(KernelOf<K>, const TopkPass& params) { launch<K>("topk_nodes", params, stream); });
}

}  // namespace attn::cuda
