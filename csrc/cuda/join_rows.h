// A block joins rows of partial results: its warps deal them out, then put theirs together in order.
#pragma once

#include "cuda/vectors.h"

namespace attn::cuda {

constexpr int kJoinWarps = 8;
constexpr int kJoinThreads = 32 * kJoinWarps;

// What the warps hand to each other: up to kValues floats a lane.
template <int kValues> struct JoinShared { float x[kJoinWarps][32 * kValues]; };

// Calls f(values of the same lane of a warp) for every warp in order; all threads get all.
template <int N, int kValues, class F>
ATTN_DEVICE void for_warps(JoinShared<kValues>& shared, const float (&mine)[N], F&& f) {
  static_assert(N <= kValues);
  ATTN_UNROLL
  for (int i = 0; i < N; ++i) shared.x[seam::warp()][32 * i + seam::lane()] = mine[i];
  seam::sync_block();
  ATTN_ROLLED
  for (int w = 0; w < kJoinWarps; ++w) {
    float x[N];
    ATTN_UNROLL
    for (int i = 0; i < N; ++i) x[i] = shared.x[w][32 * i + seam::lane()];
    f(x);
  }
  seam::sync_block();
}

// The calling warp's share of n rows: neighbours, so that what it has comes before all that the next one has.
struct JoinRange {
  int64_t begin, end;

  ATTN_DEVICE static JoinRange mine(int64_t n) {
    const int64_t each = (n + kJoinWarps - 1) / kJoinWarps, begin = seam::warp() * each, end = begin + each;
    return {begin, end < n ? end : n};
  }
};

// Blocks: groups of rows x slabs of 32 lanes' channels.
struct JoinItem {
  int64_t group, channel;

  static Grid grid(int64_t groups, int64_t channels, int vector) { return {groups, (channels / vector + 31) / 32}; }
  // The lane's channels; past the last one where it has none.
  template <int V> ATTN_DEVICE static JoinItem mine() {
    return {seam::block_x(), (static_cast<int64_t>(seam::block_y()) * 32 + seam::lane()) * V};
  }
};

}  // namespace attn::cuda
