// What a warp multiplies for query pooling: 16 rows by 32 columns, 64 features at a time, from shared memory. bf16 and
// f16 on tensor cores, float32 with FMAs; threads hold the same elements of a product (WarpAttend's).
#pragma once

#include "cuda/sm80/products.h"
#include "cuda/sm80/shared_rows.h"

namespace attn::cuda {

constexpr int kPoolChunk = 64;  // features in shared memory
constexpr int kPoolColumns = 32, kPoolGroups = kPoolColumns / 8;
using PoolScores = float[kPoolGroups][4];

template <class T> struct PoolTile {
  template <int kRows> using Rows = SharedRows<T, kPoolChunk, kRows>;
  struct Shared {};  // of a warp

  // x += rows times columns.
  template <class A, class B>
  ATTN_DEVICE static void multiply(A& rows, int row, B& columns, int column, int, PoolScores& x) {
    add_products<kPoolGroups, kPoolChunk>(rows, row, columns, column, 0, x);
  }

  // Eight groups of features from `out` += weights x times what the columns carry.
  template <class B>
  ATTN_DEVICE static void add(const PoolScores& x, B& values, int column, int, float (*out)[4], Shared&) {
    add_values<kPoolChunk / 8>(x, values, column, 0, out);
  }
};

template <> struct PoolTile<float> {
  struct alignas(16) Four { float x[4]; };

  // Rows 68 apart: four elements each of eight of them lie in 32 banks.
  template <int kRows> struct Rows {
    alignas(16) float row[kRows][kPoolChunk + 4];

    template <int kThreads, class Offset>
    ATTN_DEVICE void load(const float* from, int dim, bool aligned, Offset&& offset) {
      ATTN_ROLLED
      for (int i = seam::thread(); i < kRows * kPoolChunk / 4; i += kThreads) {
        const int r = i / (kPoolChunk / 4), d = i % (kPoolChunk / 4) * 4;
        const int64_t begin = offset(r);
        const int left = begin < 0 ? 0 : dim - d, n = left < 0 ? 0 : left < 4 ? left : 4;
        const float* x = n ? from + begin + d : from;
        if (aligned) {
          seam::copy16_async(&row[r][d], x, 4 * n);
          continue;
        }
        ATTN_UNROLL
        for (int j = 0; j < 4; ++j) row[r][d + j] = j < n ? x[j] : 0;
      }
    }
    ATTN_DEVICE Four four(int r, int d) const { return *reinterpret_cast<const Four*>(&row[r][d]); }
  };
  struct Shared { float weight[16][kPoolColumns + 1]; };

  // Groups without any of the `count` columns are left out.
  template <class A, class B>
  ATTN_DEVICE static void multiply(A& rows, int row, B& columns, int column, int count, PoolScores& x) {
    const int g = seam::lane() / 4, t = seam::lane() % 4;
    ATTN_ROLLED
    for (int d = 0; d < kPoolChunk; d += 4) {
      const Four a[2] = {rows.four(row + g, d), rows.four(row + g + 8, d)};
      ATTN_UNROLL
      for (int n = 0; n < kPoolGroups; ++n) {
        if (8 * n >= count) break;
        ATTN_UNROLL
        for (int c = 0; c < 2; ++c) {
          const Four b = columns.four(column + 8 * n + 2 * t + c, d);
          ATTN_UNROLL
          for (int j = 0; j < 4; ++j) {
            x[n][c] += a[0].x[j] * b.x[j];
            x[n][2 + c] += a[1].x[j] * b.x[j];
          }
        }
      }
    }
  }

  template <class B>
  ATTN_DEVICE static void add(const PoolScores& x, B& values, int column, int count, float (*out)[4], Shared& shared) {
    const int g = seam::lane() / 4, t = seam::lane() % 4;
    seam::sync_warp();
    ATTN_UNROLL
    for (int n = 0; n < kPoolGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) shared.weight[g + e / 2 * 8][8 * n + 2 * t + e % 2] = x[n][e];
    }
    seam::sync_warp();
    ATTN_ROLLED
    for (int c = 0; c < count; ++c) {
      const float low = shared.weight[g][c], high = shared.weight[g + 8][c];
      const float* v = values.row[column + c] + 2 * t;
      ATTN_UNROLL
      for (int n = 0; n < kPoolChunk / 8; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 2; ++e) {
          out[n][e] += low * v[8 * n + e];
          out[n][2 + e] += high * v[8 * n + e];
        }
      }
    }
  }
};

}  // namespace attn::cuda
