// What the backward pass of normalised linear attention needs of each row before it starts. out_i = N_i / mass_i, so
//   dN_i = dout_i / mass_i     dmass_i = -dN_i . out_i
// dN is rounded here as the products will round it, or the two terms of a gradient wouldn't cancel. For every
// architecture; memory-bound.
#pragma once

#include "cuda/grid.h"
#include "cuda/scan_rows.h"
#include "cuda/smxx/lane_row.h"

namespace attn::cuda {

// A warp takes a row of [B, H, Tq]. Tile: of the products (sm80/scan_tile.h).
template <class T, class Tile> struct LinearDelta {
  static constexpr int kThreads = 128;
  using Params = LinearDeltaParams;
  struct Shared {};

  static Grid grid(const Params& p) { return {(p.batch * p.heads * p.tokens + kThreads / 32 - 1) / (kThreads / 32)}; }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const int64_t row = static_cast<int64_t>(seam::block_x()) * (kThreads / 32) + seam::warp();
    if (row >= p.batch * p.heads * p.tokens) return;
    const int64_t batch = row / p.tokens / p.heads, head = row / p.tokens % p.heads, token = row % p.tokens;
    const T *out = scan_row<const T>(p.out, batch, head, token), *dout = scan_row<const T>(p.dout, batch, head, token);
    const float mass = p.mass[row], factor = mass == 0 ? 0 : 1 / mass;
    float sum = 0;
    ATTN_ROLLED
    for (int64_t first = seam::lane(); first < p.dim; first += 32 * 4) {
      ATTN_UNROLL
      for (int i = 0; i < 4; ++i) {  // loads in flight
        const int64_t d = first + 32 * i;
        if (d < p.dim) sum += Tile::rounded(seam::to_float(dout[d]) * factor) * seam::to_float(out[d]);
      }
    }
    sum = lane_sum(sum);
    if (seam::lane() == 0) {
      p.factor[row] = factor;
      p.mass_term[row] = -sum;
    }
  }
};

}  // namespace attn::cuda
