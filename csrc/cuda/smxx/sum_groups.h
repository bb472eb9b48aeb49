// Sum over the query heads that share a key head, in their order (attn/scan.h). For every architecture; a thread takes
// an element.
#pragma once

#include "attn/scan.h"
#include "cuda/grid.h"
#include "cuda/seam.h"

namespace attn::cuda {

template <class T> struct SumGroups {
  static constexpr int kThreads = 256;
  using Params = SumGroupsParams;
  struct Shared {};
  static Grid grid(const Params& p) { return {(p.batch * p.heads_kv * p.tokens * p.dim + kThreads - 1) / kThreads}; }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const int64_t i = static_cast<int64_t>(seam::block_x()) * kThreads + seam::thread();
    if (i >= p.batch * p.heads_kv * p.tokens * p.dim) return;
    const int64_t d = i % p.dim, t = i / p.dim % p.tokens, head = i / p.dim / p.tokens % p.heads_kv;
    const int64_t batch = i / p.dim / p.tokens / p.heads_kv;
    const T* x = static_cast<const T*>(p.x.data) + batch * p.x.batch + head * p.group * p.x.head + t * p.x.token + d;
    float sum = 0;
    for (int64_t h = 0; h < p.group; ++h) sum += seam::to_float(x[h * p.x.head]);
    static_cast<T*>(p.out.data)[batch * p.out.batch + head * p.out.head + t * p.out.token + d] =
        seam::from_float<T>(sum);
  }
};

}  // namespace attn::cuda
