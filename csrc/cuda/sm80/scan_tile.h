// Tiles of 64 x 64 in shared memory as operands of the products that a scan is made of, on tensor cores from sm_80 on,
// fp32 accumulation. What lies in a tile are features and states rather than a tensor's own elements, so the type is
// chosen for its range as well:
//   bf16      bf16 products
//   f16       tf32 products, which hold every f16 number and whose range is that of float32: sums of features leave f16
//   float32   a number as two of tf32, three products: errors of float32's own size
// A warp takes 16 rows of a result, 64 columns: sums[n][e] as mma has them, row lane / 4 + 8 (e / 2), column 8 n +
// 2 (lane % 4) + e % 2.
#pragma once

#include "cuda/sm80/shared_rows.h"

namespace attn::cuda {

constexpr int kScanTile = 64;  // rows and columns

using TileSums = float[kScanTile / 8][4];

ATTN_DEVICE void clear_sums(TileSums& s) {
  ATTN_UNROLL
  for (int n = 0; n < kScanTile / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
}
// Of a tile's 16 rows from `first`, the calling thread's i-th, and its columns.
ATTN_DEVICE int sums_row(int first, int i) { return first + seam::lane() / 4 + 8 * i; }
ATTN_DEVICE int sums_column(int n, int c) { return 8 * n + 2 * (seam::lane() % 4) + c; }

// A vector as operand B is a matrix whose columns 0 and 1 add up to it: its elements are sums and keep their precision.
template <class Tile> ATTN_DEVICE float vector_column(float x) {
  const int column = seam::lane() / 4;
  const float high = Tile::rounded(x);
  return column == 0 ? high : column == 1 ? Tile::rounded(x - high) : 0.0f;
}

struct Bf16Tile {
  using T = seam::Bf16;
  using A = uint32_t[4];
  static constexpr int kDepth = 16, kSteps = kScanTile / kDepth;  // of a product
  SharedRows<T, kScanTile, kScanTile> rows;

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

  ATTN_DEVICE void operand(A& a, int row, int k) { rows.operand_a(a, row, k); }
  ATTN_DEVICE void operand_transposed(A& a, int column, int k) { rows.operand_a_transposed(a, column / 16, k); }
  ATTN_DEVICE static void operand_of_sums(A& a, const TileSums& s, int k) {
    a[0] = seam::pack<T>(s[2 * k][0], s[2 * k][1]);
    a[1] = seam::pack<T>(s[2 * k][2], s[2 * k][3]);
    a[2] = seam::pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]);
    a[3] = seam::pack<T>(s[2 * k + 1][2], s[2 * k + 1][3]);
  }

  // B[k][n] = element k of row n.
  ATTN_DEVICE void multiply_rows(TileSums& s, const A& a, int k) {
    ATTN_UNROLL
    for (int n = 0; n < kScanTile / 8; n += 2) {
      uint32_t b[2], c[2];
      rows.operands_b(b, c, 8 * n, k);
      seam::mma<T>(s[n], a, b);
      seam::mma<T>(s[n + 1], a, c);
    }
  }
  // B[k][n] = element n of row k. kOfSums: a comes from operand_of_sums.
  template <bool kOfSums> ATTN_DEVICE void multiply_columns(TileSums& s, const A& a, int k) {
    ATTN_UNROLL
    for (int n = 0; n < kScanTile / 8; n += 2) {
      uint32_t b[2], c[2];
      rows.operands_b_transposed(b, c, 16 * k, n / 2);
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

// kSplit: of float32.
template <bool kSplit> struct FloatTile {
  struct A { float high[4], low[4]; };
  static constexpr int kDepth = 8, kSteps = kScanTile / kDepth;
  struct alignas(16) Four { float x[4]; };
  Four four[kScanTile * kScanTile / 4];

  // Groups of four in a row are permuted by its number, so that the elements which the lanes of a warp want at once lie
  // in different banks: eight rows by four columns, and (0 to 3, 4 to 7, even, odd) four rows by eight columns.
  ATTN_DEVICE Four* group(int row, int g) {
    const int r = row % 8, turn = 2 * (r % 4 ^ r / 4) + r / 4;
    return four + row * (kScanTile / 4) + (g ^ turn);
  }
  ATTN_DEVICE static float rounded(float x) { return kSplit ? x : seam::tf32(x); }
  ATTN_DEVICE float* element(int row, int column) { return group(row, column / 4)->x + column % 4; }
  ATTN_DEVICE float get(int row, int column) { return *element(row, column); }
  ATTN_DEVICE void put(int row, int column, float x) { *element(row, column) = rounded(x); }
  ATTN_DEVICE void put8(int row, int chunk, const float (&x)[8]) {
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      *group(row, 2 * chunk +
                      i) = {{rounded(x[4 * i]), rounded(x[4 * i + 1]), rounded(x[4 * i + 2]), rounded(x[4 * i + 3])}};
    }
  }

  // m16n8k8: a[r] = A[lane / 4 + 8 (r % 2)][lane % 4 + 4 (r / 2)], b[r] = B[lane % 4 + 4 r][lane / 4].
  ATTN_DEVICE static void set(A& a, int r, float x) {
    a.high[r] = kSplit ? seam::tf32(x) : x;
    a.low[r] = kSplit ? seam::tf32(x - a.high[r]) : 0;
  }
  ATTN_DEVICE void operand(A& a, int row, int k) {
    ATTN_UNROLL
    for (int r = 0; r < 4; ++r) {
      set(a, r, get(row + seam::lane() / 4 + 8 * (r % 2), 8 * k + seam::lane() % 4 + 4 * (r / 2)));
    }
  }
  ATTN_DEVICE void operand_transposed(A& a, int column, int k) {
    ATTN_UNROLL
    for (int r = 0; r < 4; ++r) {
      set(a, r, get(8 * k + seam::lane() % 4 + 4 * (r / 2), column + seam::lane() / 4 + 8 * (r % 2)));
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
      const float high[2] = {seam::tf32(b0), seam::tf32(b1)};
      const float low[2] = {seam::tf32(b0 - high[0]), seam::tf32(b1 - high[1])};
      float part[4] = {};  // tensor cores cut long sums off instead of rounding them (products.h)
      seam::mma_tf32(part, a.low, high);
      seam::mma_tf32(part, a.high, low);
      seam::mma_tf32(part, a.high, high);
      ATTN_UNROLL
      for (int i = 0; i < 4; ++i) s[i] += part[i];
    } else {
      const float b[2] = {b0, b1};
      seam::mma_tf32(s, a.high, b);
    }
  }
  // b, but not before the sums of two groups before are done: compilers would put off adding up.
  ATTN_DEVICE static float after(const TileSums& s, int n, float b) {
    if constexpr (!kSplit) return b;
    constexpr int kGroups = kScanTile / 8;
    return seam::float_of(seam::bits_of(b) | seam::zero_after(s[(n + kGroups - 2) % kGroups]));
  }
  ATTN_DEVICE void multiply_rows(TileSums& s, const A& a, int k) {
    const int t = 8 * k + seam::lane() % 4;
    ATTN_UNROLL
    for (int n = 0; n < kScanTile / 8; ++n) {
      const int row = 8 * n + seam::lane() / 4;
      multiply(s[n], a, after(s, n, get(row, t)), get(row, t + 4));
    }
  }
  template <bool kOfSums> ATTN_DEVICE void multiply_columns(TileSums& s, const A& a, int k) {
    const int row = 8 * k + (kOfSums ? 2 : 1) * (seam::lane() % 4);
    ATTN_UNROLL
    for (int n = 0; n < kScanTile / 8; ++n) {
      const int column = 8 * n + seam::lane() / 4;
      multiply(s[n], a, after(s, n, get(row, column)), get(row + (kOfSums ? 1 : 4), column));
    }
  }
  ATTN_DEVICE static void multiply_vector(float (&s)[4], const A& a, const float* x, int k) {
    const float* at = x + 8 * k + seam::lane() % 4;
    multiply(s, a, vector_column<FloatTile>(at[0]), vector_column<FloatTile>(at[4]));
  }
};

template <class T> struct ScanTileOf { using type = FloatTile<sizeof(T) == 4>; };
template <> struct ScanTileOf<seam::Bf16> { using type = Bf16Tile; };
template <class T> using ScanTile = typename ScanTileOf<T>::type;

// s += A[16 rows from `row`] B^T
template <class Tile> ATTN_DEVICE void add_product_with_rows(TileSums& s, Tile& a, int row, Tile& b) {
  ATTN_ROLLED
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A x;
    a.operand(x, row, k);
    b.multiply_rows(s, x, k);
  }
}
// s += A[16 rows from `row`] C
template <class Tile> ATTN_DEVICE void add_product(TileSums& s, Tile& a, int row, Tile& c) {
  ATTN_ROLLED
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A x;
    a.operand(x, row, k);
    c.template multiply_columns<false>(s, x, k);
  }
}
// The same, and v += A[16 rows from `row`] x: of row i, in v[2 i] + v[2 i + 1] of the threads with lane % 4 == 0.
template <class Tile>
ATTN_DEVICE void add_product_and_vector(TileSums& s, float (&v)[4], Tile& a, int row, Tile& c, const float* x) {
  ATTN_ROLLED
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A y;
    a.operand(y, row, k);
    c.template multiply_columns<false>(s, y, k);
    Tile::multiply_vector(v, y, x, k);
  }
}
// s += A^T[16 columns from `column`] C, v += A^T x.
template <class Tile>
ATTN_DEVICE void add_transposed_product(TileSums& s, float (&v)[4], Tile& a, int column, Tile& c, const float* x) {
  ATTN_ROLLED
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A y;
    a.operand_transposed(y, column, k);
    c.template multiply_columns<false>(s, y, k);
    Tile::multiply_vector(v, y, x, k);
  }
}
// s += P C for 16 x 64 sums p.
template <class Tile> ATTN_DEVICE void add_product_of_sums(TileSums& s, const TileSums& p, Tile& c) {
  ATTN_UNROLL
  for (int k = 0; k < Tile::kSteps; ++k) {
    typename Tile::A x;
    Tile::operand_of_sums(x, p, k);
    c.template multiply_columns<true>(s, x, k);
  }
}

}  // namespace attn::cuda
