// A row of up to 256 features in the registers of a warp: feature d in lane d % 32.
#pragma once

#include "cuda/seam.h"

namespace attn::cuda {

constexpr int kLaneFeatures = 8;

// f(j, d) for features d = lane + 32 j of a row of `dim`.
template <class F> ATTN_DEVICE void for_lane(int64_t dim, F&& f) {
  ATTN_UNROLL
  for (int j = 0; j < kLaneFeatures; ++j) {
    if (32 * j >= dim) break;
    const int d = seam::lane() + 32 * j;
    if (d < dim) f(j, d);
  }
}

struct LaneRow {
  float x[kLaneFeatures];

  ATTN_DEVICE void clear() {
    ATTN_UNROLL
    for (int j = 0; j < kLaneFeatures; ++j) x[j] = 0;
  }
  // Elements past `dim` are 0.
  template <class F> ATTN_DEVICE void set(int64_t dim, F&& f) {
    clear();
    for_lane(dim, [&](int j, int d) { x[j] = f(j, d); });
  }
  ATTN_DEVICE void add(int64_t dim, float weight, const LaneRow& row) {
    for_lane(dim, [&](int j, int) { x[j] += weight * row.x[j]; });
  }
};

ATTN_DEVICE float lane_sum(float x) {
  ATTN_UNROLL
  for (int step = 16; step > 0; step /= 2) x += seam::shuffle_xor(x, step);
  return x;
}

}  // namespace attn::cuda
