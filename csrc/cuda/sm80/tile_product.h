// Products of 64 x 64 tiles in shared memory (scan_tile.h, float_tile.h), of a block of 128 threads: of a product's
// rows the calling warp's sixteen.
#pragma once

#include "cuda/sm80/tile_sums.h"

namespace attn::cuda {

// What a row of a tile is: an index of the product, or one that is summed over.
enum class TileRows { product, summed };

template <TileRows kA, class Tile> ATTN_DEVICE void tile_operand(typename Tile::A& x, Tile& a, int first, int k) {
  if constexpr (kA == TileRows::product) Tile::operand(x, a, first, k);
  else Tile::operand_transposed(x, a, first, k);
}

// s[i][j] += sum_k a[i][k] b[k][j]
template <TileRows kA, TileRows kB, class Tile> ATTN_DEVICE void add_product(TileSums& s, Tile& a, Tile& b) {
  const int first = 16 * seam::warp();
  ATTN_ROLLED
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A x;
    tile_operand<kA>(x, a, first, k);
    if constexpr (kB == TileRows::product) Tile::multiply_rows(s, x, b, k);
    else Tile::template multiply_columns<false>(s, x, b, k);
  }
}

// The same, of a b whose rows are summed over, and sum_k a[i][k] x[k]: of the calling thread's row i in v[2 i] +
// v[2 i + 1] where lane % 4 == 0.
template <TileRows kA, class Tile>
ATTN_DEVICE void add_product_and_vector(TileSums& s, float (&v)[4], Tile& a, Tile& b, const float* x) {
  const int first = 16 * seam::warp();
  ATTN_ROLLED
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A y;
    tile_operand<kA>(y, a, first, k);
    Tile::template multiply_columns<false>(s, y, b, k);
    Tile::multiply_vector(v, y, x, k);
  }
}

// The same for a that is sums: s[i][j] += sum_k a[i][k] b[k][j].
template <class Tile> ATTN_DEVICE void add_product_of_sums(TileSums& s, const TileSums& a, Tile& b) {
  ATTN_UNROLL
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A x;
    Tile::operand_of_sums(x, a, k);
    Tile::template multiply_columns<true>(s, x, b, k);
  }
}

}  // namespace attn::cuda
