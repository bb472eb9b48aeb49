// What stands beside the passes of query pooling, for every architecture: the sums of parts added up in order, and how
// many keys a mask keeps.
#pragma once

#include "attn/softmax.h"
#include "cuda/grid.h"
#include "cuda/query_pool_parts.h"
#include "cuda/seam.h"

namespace attn::cuda {

// A warp takes a row of the result of a pass with queries in rows: of a sequence with several parts or, where blocks
// added up ranges of parts, of all sequences. Lanes have features.
template <class T> struct QueryPoolSums {
  static constexpr int kThreads = 128;
  using Params = QueryPoolPass;
  struct Shared {};

  ATTN_HD static int64_t rows(const Params& p) {
    if (p.partial_slots() == 0) return 0;
    return (p.range > 0 ? 1 : p.pool.sequences.count) * p.query_rows();
  }
  static Grid grid(const Params& p) { return {(rows(p) + kThreads / 32 - 1) / (kThreads / 32)}; }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    constexpr int kFeatures = 4;  // of a lane at once: loads in flight
    const int64_t i = static_cast<int64_t>(seam::block_x()) * (kThreads / 32) + seam::warp();
    if (i >= rows(p)) return;
    const int64_t n = p.query_rows(), s = i / n, row = i % n;
    const int64_t parts = p.range > 0 ? p.blocks_of_parts() : p.parts.chunks(s);
    if (p.range == 0 && parts < 2) return;  // written by the pass itself
    const int64_t first = p.range > 0 ? 0 : p.first_slot(s);
    float top = -INFINITY, sum = 0, factor = static_cast<float>(p.gradient ? p.pool.scale : 1);
    const float* softmax = p.partial_softmax ? p.partial_softmax + 2 * (first * n + row) : nullptr;
    const auto weight = [&](int64_t part) {
      return softmax ? seam::exp2_fast(softmax[2 * part * n] - (top == -INFINITY ? 0 : top)) : 1;
    };
    if (softmax) {
      for (int64_t part = 0; part < parts; ++part) top = std::fmax(top, softmax[2 * part * n]);
      for (int64_t part = 0; part < parts; ++part) sum += weight(part) * softmax[2 * part * n + 1];
      float lse;
      finish_row(top, sum, -INFINITY, factor, lse);
      if (seam::lane() == 0) static_cast<float*>(p.pool.lse)[i] = lse;
    } else if (p.range == 0 && p.pool.activation == PoolActivation::relu_mean) {
      const ScanChunks::Range tokens = p.parts.sequence(s);
      factor *= p.inverse_count ? p.inverse_count[s] : 1 / static_cast<float>(tokens.end - tokens.begin);
    }
    const float* from = p.partial + (first * n + row) * p.dim;
    T* out = static_cast<T*>(p.out.data) + s * p.out.batch + row / p.pool.queries * p.out.head +
             row % p.pool.queries * p.out.token;
    for (int64_t d = seam::lane(); d < p.dim; d += 32 * kFeatures) {
      float x[kFeatures] = {};
      for (int64_t part = 0; part < parts; ++part) {
        const float w = weight(part);
        ATTN_UNROLL
        for (int j = 0; j < kFeatures; ++j) {
          if (d + 32 * j < p.dim) x[j] += w * from[part * n * p.dim + d + 32 * j];
        }
      }
      ATTN_UNROLL
      for (int j = 0; j < kFeatures; ++j) {
        if (d + 32 * j < p.dim) out[d + 32 * j] = seam::from_float<T>(x[j] * factor);
      }
    }
  }
};

struct QueryPoolCountsParams {
  ScanChunks sequences;
  MaskView mask;
  float* inverse;  // [sequences]: 1 / kept keys, or 0; null: not wanted
};

// A block takes a sequence.
struct QueryPoolCounts {
  static constexpr int kThreads = 256;
  using Params = QueryPoolCountsParams;
  struct Shared { int32_t sum[kThreads / 32]; };
  static Grid grid(const Params& p) { return {p.inverse ? p.sequences.sequences : 0}; }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const int64_t s = seam::block_x();
    const ScanChunks::Range tokens = p.sequences.sequence(s);
    int32_t n = 0;
    for (int64_t t = tokens.begin + seam::thread(); t < tokens.end; t += kThreads)
      n += taken(p.mask, p.sequences.cu ? 0 : s, t);
    n = seam::reduce_add(n);
    if (seam::lane() == 0) shared.sum[seam::warp()] = n;
    seam::sync_block();
    if (seam::thread() != 0) return;
    n = 0;
    for (int i = 0; i < kThreads / 32; ++i) n += shared.sum[i];
    p.inverse[s] = n > 0 ? 1 / static_cast<float>(n) : 0;
  }
};

}  // namespace attn::cuda
