// Products of 64 x 64 tiles of float32 in shared memory on tensor cores, as tf32: for float32 tensors in two parts, for
// bf16 and f16 as they are, with the range of float32 (running sums leave that of f16) and the precision of f16.
#pragma once

#include "cuda/sm80/float_tile.h"

namespace attn::cuda {

// What a row of a tile in shared memory is: an index of the product, or one that is summed over.
enum class TileRows { product, summed };

struct Tile : FloatCells {
  template <TileRows> ATTN_DEVICE float* at(int row, int column) { return element(row, column); }
};

// T: element type of the tensors that the operands come from.
template <class T> struct TileProduct {
  using Form = FloatTile<sizeof(T) == 4>;
  TileSums c;

  // What belongs into a tile for x.
  ATTN_DEVICE static float operand(float x) { return Form::rounded(x); }

  ATTN_DEVICE void clear() { clear_sums(c); }

  // c[i][j] += sum_k a[i][k] b[k][j]
  template <TileRows kA, TileRows kB> ATTN_DEVICE void multiply(Tile& a, Tile& b) {
    ATTN_ROLLED
    for (int k = 0; k < Form::kSteps; ++k) {
      typename Form::A x;
      if constexpr (kA == TileRows::product) Form::operand(x, a, 16 * seam::warp(), k);
      else Form::operand_transposed(x, a, 16 * seam::warp(), k);
      if constexpr (kB == TileRows::product) Form::multiply_rows(c, x, b, k);
      else Form::template multiply_columns<false>(c, x, b, k);
    }
  }

  // f(i, j, c[i][j]) for the elements that the calling thread holds.
  template <TileRows, class F> ATTN_DEVICE void for_each(F&& f) {
    for_sums([&](int n, int e, int i, int j) { f(i, j, c[n][e]); });
  }
};

}  // namespace attn::cuda
