// How a selection of nodes is cut, and the memory it wants. Nodes become 64-bit keys that are all different and in
// descending order of what comes first (score descending, NaN first, then index): any sort gives the one order. Runs of
// kSortRun keys are sorted in shared memory, then runs of a graph are merged, twice as long each time.
#pragma once

#include "attn/pool.h"
#include "cuda/scan_chunks.h"

namespace attn::cuda {

constexpr int64_t kSortRun = 2048;

struct TopkPass {
  TopkNodesParams nodes;
  ScanChunks runs;      // of graphs
  uint64_t *from, *to;  // [nodes] each: keys
  int64_t length;       // of the runs that are merged
};

// A number that is greater for what comes first: the score's bits in its order, NaN above all; -0 is 0.
ATTN_HD uint32_t score_order(float score, uint32_t bits) {
  if (score != score) return 0xffffffffu;
  if (score == 0) return 0x80000000u;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Names a kernel to a function that launches it.
template <class K> struct KernelOf { using type = K; };

inline int64_t topk_scratch(const TopkNodesParams& p) { return p.by_score ? 0 : 4 * p.nodes; }

inline TopkPass topk_pass(const TopkNodesParams& p, float* scratch) {
  uint64_t* keys = reinterpret_cast<uint64_t*>(scratch);
  return {p, {p.cu, p.graphs, p.nodes, kSortRun}, keys, keys ? keys + p.nodes : nullptr, kSortRun};
}

}  // namespace attn::cuda
