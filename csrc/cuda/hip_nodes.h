// How many nodes a selection holds: what of its size a kernel is chosen by.
#pragma once

#include "attn/hip.h"

namespace attn::cuda {

// Nodes that a call's searches hold: 0 if every list is all there is.
inline int64_t hip_nodes(const SelectParams& p) {
  if (p.tq == 0) return 0;
  const HipSearch last = hip_search(p, hip_query_blocks(p) - 1);  // no other block sees more
  return last.rounds > 0 ? last.nodes : 0;
}

constexpr int kHipNodes = 512, kHipNodesAtMost = 2048;  // of the kernels that are built

}  // namespace attn::cuda
