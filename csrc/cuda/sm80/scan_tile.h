// Tiles of 64 x 64 in shared memory as operands of the products that a scan is made of, on tensor cores from sm_80 on,
// fp32 accumulation. What lies in a tile are features and states rather than a tensor's own elements, so the type is
// chosen for its range as well:
//   bf16      bf16 products
//   f16       tf32 products, which hold every f16 number and whose range is that of float32: sums of features leave f16
//   float32   a number as two of tf32, three products: errors of float32's own size
#pragma once

#include "cuda/sm80/float_tile.h"
#include "cuda/sm80/shared_rows.h"

namespace attn::cuda {

struct Bf16Tile {
  using T = seam::Bf16;
  using A = uint32_t[4];
  static constexpr int kDepth = 16, kSteps = kTile / kDepth;  // of a product
  SharedRows<T, kTile, kTile> rows;

  ATTN_DEVICE static float rounded(float x) { return seam::to_float(seam::from_float<T>(x)); }
  ATTN_DEVICE T* element(int row, int column) { return reinterpret_cast<T*>(rows.at(row, column / 8)) + column % 8; }
  ATTN_DEVICE float get(int row, int column) { return seam::to_float(*element(row, column)); }
  ATTN_DEVICE void put(int row, int column, float x) { *element(row, column) = seam::from_float<T>(x); }
  // Eight neighbours.
  ATTN_DEVICE void put8(int row, int chunk, const float (&x)[8]) {
    Chunk y;
    ATTN_UNROLL
    for (int i = 0; i < 4; ++i) y.word[i] = seam::pack<T>(x[2 * i], x[2 * i + 1]);
    *rows.at(row, chunk) = y;
  }

  ATTN_DEVICE static void operand(A& a, Bf16Tile& from, int row, int k) { from.rows.operand_a(a, row, k); }
  ATTN_DEVICE static void operand_transposed(A& a, Bf16Tile& from, int column, int k) {
    from.rows.operand_a_transposed(a, column / 16, k);
  }
  ATTN_DEVICE static void operand_of_sums(A& a, const TileSums& s, int k) { Products<T>::pack(a, s, k); }

  // B[k][n] = element k of row n.
  ATTN_DEVICE static void multiply_rows(TileSums& s, const A& a, Bf16Tile& from, int k) {
    ATTN_UNROLL
    for (int n = 0; n < kTile / 8; n += 2) {
      uint32_t b[2], c[2];
      from.rows.operands_b(b, c, 8 * n, k);
      seam::mma<T>(s[n], a, b);
      seam::mma<T>(s[n + 1], a, c);
    }
  }
  // B[k][n] = element n of row k. kOfSums: a comes from operand_of_sums.
  template <bool kOfSums> ATTN_DEVICE static void multiply_columns(TileSums& s, const A& a, Bf16Tile& from, int k) {
    ATTN_UNROLL
    for (int n = 0; n < kTile / 8; n += 2) {
      uint32_t b[2], c[2];
      from.rows.operands_b_transposed(b, c, 16 * k, n / 2);
      seam::mma<T>(s[n], a, b);
      seam::mma<T>(s[n + 1], a, c);
    }
  }
  // With a vector x of 64 in shared memory.
  ATTN_DEVICE static void multiply_vector(float (&s)[4], const A& a, const float* x, int k) {
    uint32_t b[2];
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float* at = x + 16 * k + 2 * (seam::lane() % 4) + 8 * i;
      b[i] = seam::pack<T>(vector_column<Bf16Tile>(at[0]), vector_column<Bf16Tile>(at[1]));
    }
    seam::mma<T>(s, a, b);
  }
};

template <class T> struct ScanTileOf { using type = FloatTile<sizeof(T) == 4>; };
template <> struct ScanTileOf<seam::Bf16> { using type = Bf16Tile; };
template <class T> using ScanTile = typename ScanTileOf<T>::type;

}  // namespace attn::cuda
