// Tiles of 64 x 64 floats in shared memory as operands of products on tensor cores, as tf32: numbers that tf32 holds as
// they are, or those of float32 in two parts each (products.h).
#pragma once

#include "cuda/sm80/products.h"
#include "cuda/sm80/tile_sums.h"

namespace attn::cuda {

struct FloatCells {
  struct alignas(16) Four { float x[4]; };
  Four four[kTile * kTile / 4];

  // Groups of four in a row are permuted by its number, so that the elements which the lanes of a warp want at once lie
  // in different banks: eight rows by four columns, and (0 to 3, 4 to 7, even, odd) four rows by eight columns.
  ATTN_DEVICE Four* group(int row, int g) {
    const int r = row % 8, turn = 2 * (r % 4 ^ r / 4) + r / 4;
    return four + row * (kTile / 4) + (g ^ turn);
  }
  ATTN_DEVICE float* element(int row, int column) { return group(row, column / 4)->x + column % 4; }
  ATTN_DEVICE float get(int row, int column) { return *element(row, column); }
};

// kSplit: of float32.
template <bool kSplit> struct FloatTile : FloatCells {
  using A = Products<float>::A;  // without a lower part if not split
  static constexpr int kDepth = 8, kSteps = kTile / kDepth;

  // What belongs into a tile for x.
  ATTN_DEVICE static float rounded(float x) { return kSplit ? x : seam::tf32(x); }
  ATTN_DEVICE void put(int row, int column, float x) { *element(row, column) = rounded(x); }
  ATTN_DEVICE void put8(int row, int chunk, const float (&x)[8]) {
    ATTN_UNROLL
    for (int i = 0; i < 8; i += 4) {
      *group(row, 2 * chunk + i / 4) = {{rounded(x[i]), rounded(x[i + 1]), rounded(x[i + 2]), rounded(x[i + 3])}};
    }
  }

  // m16n8k8: a[r] = A[lane / 4 + 8 (r % 2)][lane % 4 + 4 (r / 2)], b[r] = B[lane % 4 + 4 r][lane / 4].
  ATTN_DEVICE static void set(A& a, int r, float x) {
    if constexpr (kSplit) Products<float>::split(x, a.upper[r], a.lower[r]);
    else a.upper[r] = x;
  }
  ATTN_DEVICE static void operand(A& a, FloatCells& from, int row, int k) {
    ATTN_UNROLL
    for (int r = 0; r < 4; ++r) {
      set(a, r, from.get(row + seam::lane() / 4 + 8 * (r % 2), 8 * k + seam::lane() % 4 + 4 * (r / 2)));
    }
  }
  ATTN_DEVICE static void operand_transposed(A& a, FloatCells& from, int column, int k) {
    ATTN_UNROLL
    for (int r = 0; r < 4; ++r) {
      set(a, r, from.get(8 * k + seam::lane() % 4 + 4 * (r / 2), column + seam::lane() / 4 + 8 * (r % 2)));
    }
  }
  // A thread's sums are of columns 2t and 2t + 1: they are the elements t and t + 4 of the product, whose order is
  // free.
  ATTN_DEVICE static void operand_of_sums(A& a, const TileSums& s, int k) {
    ATTN_UNROLL
    for (int r = 0; r < 4; ++r) set(a, r, rounded(s[k][2 * (r % 2) + r / 2]));
  }

  ATTN_DEVICE static void multiply(float (&s)[4], const A& a, float b0, float b1) {
    if constexpr (kSplit) {
      const uint32_t b[2] = {seam::bits_of(b0), seam::bits_of(b1)};
      float part[4] = {};  // tensor cores cut long sums off instead of rounding them
      Products<float>::add(part, a, b);
      ATTN_UNROLL
      for (int i = 0; i < 4; ++i) s[i] += part[i];
    } else {
      const float b[2] = {b0, b1};
      seam::mma_tf32(s, a.upper, b);
    }
  }
  // b, but not before the sums of two groups before are done: compilers would put off adding up.
  ATTN_DEVICE static float after(const TileSums& s, int n, float b) {
    if constexpr (!kSplit) return b;
    constexpr int kGroups = kTile / 8;
    return seam::float_of(seam::bits_of(b) | seam::zero_after(s[(n + kGroups - 2) % kGroups]));
  }
  // B[k][n] = element k of row n.
  ATTN_DEVICE static void multiply_rows(TileSums& s, const A& a, FloatCells& b, int k) {
    const int t = 8 * k + seam::lane() % 4;
    ATTN_UNROLL
    for (int n = 0; n < kTile / 8; ++n) {
      const int row = 8 * n + seam::lane() / 4;
      multiply(s[n], a, after(s, n, b.get(row, t)), b.get(row, t + 4));
    }
  }
  // B[k][n] = element n of row k. kOfSums: a comes from operand_of_sums.
  template <bool kOfSums> ATTN_DEVICE static void multiply_columns(TileSums& s, const A& a, FloatCells& b, int k) {
    const int row = 8 * k + (kOfSums ? 2 : 1) * (seam::lane() % 4);
    ATTN_UNROLL
    for (int n = 0; n < kTile / 8; ++n) {
      const int column = 8 * n + seam::lane() / 4;
      multiply(s[n], a, after(s, n, b.get(row, column)), b.get(row + (kOfSums ? 1 : 4), column));
    }
  }
  // With a vector x of 64 in shared memory.
  ATTN_DEVICE static void multiply_vector(float (&s)[4], const A& a, const float* x, int k) {
    const float* at = x + 8 * k + seam::lane() % 4;
    multiply(s, a, vector_column<FloatTile>(at[0]), vector_column<FloatTile>(at[4]));
  }
};

}  // namespace attn::cuda
