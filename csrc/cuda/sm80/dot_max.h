// For each of 64 keys the greatest product with any of up to kRows query rows. bf16 and f16 on tensor cores: keys come
// into shared memory by cp.async, a warp takes 16 of them. float32: a thread reads a key where it lies, two share one
// and take half of the rows each.
#pragma once

#include "cuda/sm80/products.h"
#include "cuda/sm80/shared_rows.h"

namespace attn::cuda {

template <class T, int kDim, int kThreads> struct DotMax {
  static constexpr int kRows = 64, kKeys = 64, kStages = 2, kParts = 1;  // kParts: results of a key, to be compared
  static_assert(kThreads == 2 * kKeys);
  struct Shared {
    SharedRows<T, kDim, kRows> q;
    SharedRows<T, kDim, kKeys> k[kStages];
  };

  template <class Offset>
  ATTN_DEVICE static void load_queries(Shared& s, const View4& q, const T* base, int dim, Offset&& offset) {
    s.q.template load<kThreads>(base, dim, rows_aligned<T>(q), offset);
  }
  // row[i]: where key i begins, or -1.
  ATTN_DEVICE static void load_keys(Shared& s, int stage, const View4& k, const T* base, int dim, const int64_t* row) {
    s.k[stage].template load<kThreads>(base, dim, rows_aligned<T>(k), [&](int r) { return row[r]; });
  }

  // Calls f(part, key, maximum); NaN counts as -inf. Query rows up to the next multiple of 16 are looked at, too.
  template <class F>
  ATTN_DEVICE static void run(Shared& s, int stage, int rows, const T*, int, const int64_t*, F&& f) {
    constexpr int kWarpKeys = kKeys / (kThreads / 32), kGroups = kWarpKeys / 8;
    const int key = seam::warp() * kWarpKeys;
    float best[kGroups][2];
    ATTN_UNROLL
    for (int n = 0; n < kGroups; ++n) best[n][0] = best[n][1] = -INFINITY;
    ATTN_ROLLED
    for (int row = 0; row < rows; row += 16) {
      float c[kGroups][4] = {};
      add_products<kGroups, kDim>(s.q, row, s.k[stage], key, 0, c);
      ATTN_UNROLL
      for (int n = 0; n < kGroups; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) best[n][e % 2] = std::fmax(best[n][e % 2], c[n][e]);
      }
    }
    ATTN_UNROLL
    for (int n = 0; n < kGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 2; ++e) {
        float x = best[n][e];
        ATTN_UNROLL
        for (int step = 4; step < 32; step *= 2) x = std::fmax(x, seam::shuffle_xor(x, step));
        if (seam::lane() < 4) f(0, key + 8 * n + 2 * seam::lane() + e, x);
      }
    }
  }
};

template <int kDim, int kThreads> struct DotMax<float, kDim, kThreads> {
  static constexpr int kRows = 64, kKeys = 64, kStages = 2, kParts = 2;
  static_assert(kThreads == kParts * kKeys);
  struct Shared { float q[kRows][kDim]; };

  template <class Offset>
  ATTN_DEVICE static void load_queries(Shared& s, const View4&, const float* base, int dim, Offset&& offset) {
    ATTN_ROLLED
    for (int i = seam::thread(); i < kRows * kDim; i += kThreads) {
      const int r = i / kDim, d = i % kDim;
      s.q[r][d] = d < dim ? base[offset(r) + d] : 0;
    }
  }
  ATTN_DEVICE static void load_keys(Shared&, int, const View4&, const float*, int, const int64_t*) {}

  template <class F>
  ATTN_DEVICE static void run(Shared& s, int, int, const float* base, int dim, const int64_t* row, F&& f) {
    constexpr int kMine = kRows / kParts, kStep = 4;
    const int key = seam::thread() % kKeys, part = seam::thread() / kKeys;
    float best = -INFINITY;
    if (row[key] >= 0) {
      const float* x = base + row[key];
      float sum[kMine] = {};
      ATTN_ROLLED
      for (int d = 0; d < dim; d += kStep) {
        float k[kStep];
        ATTN_UNROLL
        for (int i = 0; i < kStep; ++i) k[i] = d + i < dim ? x[d + i] : 0;
        ATTN_UNROLL
        for (int r = 0; r < kMine; ++r) {
          ATTN_UNROLL
          for (int i = 0; i < kStep; ++i) sum[r] += s.q[part * kMine + r][d + i] * k[i];
        }
      }
      ATTN_UNROLL
      for (int r = 0; r < kMine; ++r) best = std::fmax(best, sum[r]);
    }
    f(part, key, best);
  }
};

}  // namespace attn::cuda
