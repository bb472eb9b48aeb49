// Sums of a product of 64 x 64 tiles, in the registers of a block of 128 threads: a warp has 16 rows, all columns.
// sums[n][e] as mma has them: row lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4) + e % 2.
#pragma once

#include "cuda/seam.h"

namespace attn::cuda {

constexpr int kTile = 64, kTileThreads = 128;  // rows and columns
static_assert(kTileThreads / 32 * 16 == kTile);

ATTN_HD int64_t tiles_of(int64_t n) { return (n + kTile - 1) / kTile; }

using TileSums = float[kTile / 8][4];

ATTN_DEVICE void clear_sums(TileSums& s) {
  ATTN_UNROLL
  for (int n = 0; n < kTile / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
}
// Of a tile's 16 rows from `first`, the calling thread's i-th, and its columns.
ATTN_DEVICE int sums_row(int first, int i) { return first + seam::lane() / 4 + 8 * i; }
ATTN_DEVICE int sums_column(int n, int c) { return 8 * n + 2 * (seam::lane() % 4) + c; }

// f(n, e, row, column) for the calling thread's sums.
template <class F> ATTN_DEVICE void for_sums(F&& f) {
  ATTN_UNROLL
  for (int n = 0; n < kTile / 8; ++n) {
    ATTN_UNROLL
    for (int e = 0; e < 4; ++e) f(n, e, sums_row(16 * seam::warp(), e / 2), sums_column(n, e % 2));
  }
}

// A vector as operand B is a matrix whose columns 0 and 1 add up to it: its elements are sums and keep their precision.
template <class Tile> ATTN_DEVICE float vector_column(float x) {
  const int column = seam::lane() / 4;
  const float high = Tile::rounded(x);
  return column == 0 ? high : column == 1 ? Tile::rounded(x - high) : 0.0f;
}

}  // namespace attn::cuda
