// How a block of PoNet's passes over keys takes the rows of a tile and one head: a few lanes a row, a vector of
// channels each at a time, and as many rows at once as that leaves.
#pragma once

#include "cuda/ponet_work.h"
#include "cuda/vectors.h"

namespace attn::cuda {

constexpr int kHeadWarps = 4;
constexpr int kHeadThreads = 32 * kHeadWarps;

// What the warps hand to each other: sums of a slab of channels, a vector of V or fewer a lane.
template <int V> struct HeadShared { float sum[kHeadWarps][32 * V]; };

struct HeadRows {
  int64_t dim, head, vectors;
  int lanes;       // of a row
  int lane, mine;  // of a thread, and its row among those taken at once
  int rows;        // taken at once

  template <int V> ATTN_DEVICE static HeadRows open(const PonetParams& p) {
    HeadRows h;
    h.dim = p.channels / p.heads;
    h.head = seam::block_y();
    h.vectors = h.dim / V;
    h.lanes = 1;
    while (h.lanes < 32 && h.lanes < h.vectors) h.lanes *= 2;
    h.lane = seam::lane() % h.lanes;
    h.mine = seam::thread() / h.lanes;
    h.rows = kHeadThreads / h.lanes;
    return h;
  }

  // Over the lanes of a row; all of them get it.
  ATTN_DEVICE float sum_lanes(float x) const {
    for (int step = lanes / 2; step > 0; step /= 2) x += seam::shuffle_xor(x, step);
    return x;
  }

  // Over all rows of a block: to[channel] of the slab of `lanes` vectors that begins at vector `slab`.
  template <int V, int kMost>
  ATTN_DEVICE void sum_rows(HeadShared<kMost>& shared, float (&sum)[V], int64_t slab, float* to) const {
    static_assert(V <= kMost);
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      for (int step = lanes; step < 32; step *= 2) sum[i] += seam::shuffle_xor(sum[i], step);
      if (seam::lane() < lanes) shared.sum[seam::warp()][lane * V + i] = sum[i];
    }
    seam::sync_block();
    for (int c = seam::thread(); c < lanes * V && slab * V + c < dim; c += kHeadThreads) {
      float total = 0;
      for (int w = 0; w < kHeadWarps; ++w) total += shared.sum[w][c];
      to[slab * V + c] = total;
    }
    seam::sync_block();  // shared.sum is written anew
  }
};

}  // namespace attn::cuda
