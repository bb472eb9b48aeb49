// What every segment of a scan adds to the state: the sum of b_j (x) c_j over its tokens, and of weight_j b_j. A block
// takes 64 x 64 elements of the state of a segment and head, a warp 16 x 64. Products on tensor cores from sm_80 on.
//
// Shared memory, of a block: 2 tiles, 16 KiB for bf16 and 32 KiB otherwise.
#pragma once

#include "cuda/grid.h"
#include "cuda/scan_rows.h"
#include "cuda/scan_segments.h"
#include "cuda/sm80/scan_tile.h"
#include "cuda/sm80/tile_product.h"

namespace attn::cuda {

template <class T, bool kTaylor> struct SegmentSums {
  static constexpr int kThreads = kTileThreads;
  using Params = SegmentSumsParams;
  using Tile = ScanTile<T>;
  struct Shared {
    Tile b, c;
    float weight[kTile];
  };

  static Grid grid(const Params& p) { return {p.segments.slots(), tiles_of(p.b.dim) * tiles_of(p.c.dim), p.heads}; }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    ScanSegment at;
    if (!open_segment(p.segments, seam::block_x(), at)) return;
    const int64_t across = tiles_of(p.c.dim), row = seam::block_y() / across * kTile;
    const int64_t column = seam::block_y() % across * kTile, head = seam::block_z();
    TileSums sums;
    clear_sums(sums);
    float alone[4] = {};
    ATTN_ROLLED
    for (int64_t h = head * p.group; h < (head + 1) * p.group; ++h) {
      ATTN_ROLLED
      for (int64_t i = at.begin; i < at.end; i += kTile) {
        const int64_t token = at.token + i, left = at.end - i;
        seam::sync_block();  // the tiles before are done with
        load_scan_rows<T, kThreads, kTaylor>(shared.b, p.b, at.batch, h, token, left, row);
        load_scan_rows<T, kThreads, kTaylor>(shared.c, p.c, at.batch, h, token, left, column);
        if (const int r = seam::thread(); r < kTile) {
          float weight = p.weighted ? 1 : 0;
          if (p.weight)
            weight = r < left ? p.weight[(at.batch * p.heads * p.group + h) * p.segments.tokens + token + r] : 0;
          shared.weight[r] = weight;
        }
        seam::sync_block();
        add_product_and_vector<TileRows::summed>(sums, alone, shared.b, shared.c, shared.weight);
      }
    }
    store(p, at.slot * p.heads + head, row, column, sums, alone);
  }

  ATTN_DEVICE static void store(const Params& p, int64_t state, int64_t first, int64_t column, const TileSums& sums,
                                const float (&alone)[4]) {
    float* s = p.s + state * p.b.dim * p.c.dim;
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int64_t row = first + sums_row(16 * seam::warp(), i);
      if (row >= p.b.dim) continue;
      ATTN_UNROLL
      for (int n = 0; n < kTile / 8; ++n) {
        ATTN_UNROLL
        for (int c = 0; c < 2; ++c) {
          const int64_t x = column + sums_column(n, c);
          if (x < p.c.dim) s[row * p.c.dim + x] = sums[n][2 * i + c];
        }
      }
      if (column == 0 && seam::lane() % 4 == 0) p.z[state * p.b.dim + row] = alone[2 * i] + alone[2 * i + 1];
    }
  }
};

}  // namespace attn::cuda
