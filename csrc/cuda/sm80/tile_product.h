// Products of 64 x 64 tiles of float32 in shared memory, summed in the registers of a block of 128 threads. For float32
// tensors with FMAs; for bf16 and f16 on tensor cores as tf32: the range of float32 (running sums leave that of f16)
// and the precision of f16.
#pragma once

#include "cuda/seam.h"

namespace attn::cuda {

constexpr int kTile = 64, kTileThreads = 128;

// What a row of a tile in shared memory is: an index of the product, or one that is summed over. Rows lie 68 or 72
// apart, so that the threads of a warp meet in no bank.
enum class TileRows { product, summed };

struct Tile {
  alignas(16) float x[kTile * 72];

  template <TileRows kRows> ATTN_DEVICE float* at(int row, int column) {
    return x + row * (kRows == TileRows::product ? 68 : 72) + column;
  }
  template <TileRows kRows> ATTN_DEVICE const float* at(int row, int column) const {
    return x + row * (kRows == TileRows::product ? 68 : 72) + column;
  }
};

// T: element type of the tensors that the operands come from.
template <class T> struct TileProduct {
  static constexpr bool kTensorCores = sizeof(T) == 2;
  float c[8][4];

  // What belongs into a tile for x.
  ATTN_DEVICE static float operand(float x) {
    if constexpr (kTensorCores) return seam::tf32(x);
    else return x;
  }

  ATTN_DEVICE void clear() {
    ATTN_UNROLL
    for (int i = 0; i < 8; ++i) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
  }

  // c[i][j] += sum_k a[i][k] b[k][j]; calls that add to the same c must agree in kA.
  template <TileRows kA, TileRows kB> ATTN_DEVICE void multiply(const Tile& a, const Tile& b) {
    if constexpr (kTensorCores) multiply_tf32<kA, kB>(a, b);
    else multiply_fma<kA, kB>(a, b);
  }

  // f(i, j, c[i][j]) for the elements that the calling thread holds.
  template <TileRows kA, class F> ATTN_DEVICE void for_each(F&& f) {
    ATTN_UNROLL
    for (int i = 0; i < 8; ++i) {
      ATTN_UNROLL
      for (int j = 0; j < 4; ++j) {
        if constexpr (kTensorCores) {  // fragment 4 m + n of 16 x 8
          f(warp_row() + i / 4 * 16 + seam::lane() / 4 + j / 2 * 8,
            warp_column() + i % 4 * 8 + 2 * (seam::lane() % 4) + j % 2, c[i][j]);
        } else {
          f(row<kA>(i), column(j), c[i][j]);
        }
      }
    }
  }

 private:
  // A warp of tensor cores has 32 x 32 of the product.
  ATTN_DEVICE static int warp_row() { return seam::warp() / 2 * 32; }
  ATTN_DEVICE static int warp_column() { return seam::warp() % 2 * 32; }
  // A thread of FMAs has 8 x 4. Where rows of `a` are summed over, its eight are neighbours in one of them.
  template <TileRows kA> ATTN_DEVICE static int row(int i) {
    const int mine = seam::thread() / 16;
    return kA == TileRows::product ? mine + 8 * i : 8 * mine + i;
  }
  ATTN_DEVICE static int column(int j) { return seam::thread() % 16 + 16 * j; }

  template <TileRows kRows> ATTN_DEVICE static float element(const Tile& x, int index, int k) {
    return kRows == TileRows::product ? *x.at<kRows>(index, k) : *x.at<kRows>(k, index);
  }

  template <TileRows kA, TileRows kB> ATTN_DEVICE void multiply_tf32(const Tile& a, const Tile& b) {
    const int g = seam::lane() / 4, t = seam::lane() % 4;
    ATTN_UNROLL
    for (int k = 0; k < kTile; k += 8) {
      float y[4][2];
      ATTN_UNROLL
      for (int n = 0; n < 4; ++n) {
        ATTN_UNROLL
        for (int r = 0; r < 2; ++r) y[n][r] = element<kB>(b, warp_column() + 8 * n + g, k + t + 4 * r);
      }
      ATTN_UNROLL
      for (int m = 0; m < 2; ++m) {
        float x[4];
        ATTN_UNROLL
        for (int r = 0; r < 4; ++r) x[r] = element<kA>(a, warp_row() + 16 * m + g + r % 2 * 8, k + t + r / 2 * 4);
        ATTN_UNROLL
        for (int n = 0; n < 4; ++n) seam::mma_tf32(c[4 * m + n], x, y[n]);
      }
    }
  }

  // Four elements of a row at once, where what is summed over or the thread's own rows lie beside each other.
  template <TileRows kA, TileRows kB> ATTN_DEVICE void multiply_fma(const Tile& a, const Tile& b) {
    ATTN_ROLLED
    for (int k = 0; k < kTile; k += 4) {
      Four x[8];  // product: x[i] of row i, summed: x[2 s + i / 4] of k + s
      ATTN_UNROLL
      for (int i = 0; i < 8; ++i) {
        if constexpr (kA == TileRows::product) x[i] = four(a.at<kA>(row<kA>(i), k));
        else x[i] = four(a.at<kA>(k + i / 2, row<kA>(i % 2 * 4)));
      }
      Four y[4];
      ATTN_UNROLL
      for (int j = 0; j < 4; ++j) {
        if constexpr (kB == TileRows::product) {
          y[j] = four(b.at<kB>(column(j), k));
        } else {
          ATTN_UNROLL
          for (int s = 0; s < 4; ++s) y[j].x[s] = *b.at<kB>(k + s, column(j));
        }
      }
      ATTN_UNROLL
      for (int s = 0; s < 4; ++s) {
        ATTN_UNROLL
        for (int i = 0; i < 8; ++i) {
          const float from = kA == TileRows::product ? x[i].x[s] : x[2 * s + i / 4].x[i % 4];
          ATTN_UNROLL
          for (int j = 0; j < 4; ++j) c[i][j] += from * y[j].x[s];
        }
      }
    }
  }

  struct alignas(16) Four { float x[4]; };
  ATTN_DEVICE static Four four(const float* at) { return *reinterpret_cast<const Four*>(at); }
};

}  // namespace attn::cuda
