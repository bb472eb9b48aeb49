// Merge of partial attention results and its gradient (formulas: attn/merge.h), for every architecture. A warp owns a
// row of [B, H, T]: features in lanes, parts one after another, so sums have one order. Memory-bound: the forward reads
// each part once, the backward twice.
#pragma once

#include "attn/merge.h"
#include "cuda/decode_split.h"
#include "cuda/grid.h"
#include "cuda/seam.h"

namespace attn::cuda {

constexpr int kMergeThreads = 128;  // four rows a block: enough warps on an SM, short tail

template <class Params> Grid merge_grid(const Params& p) {
  return {(p.batch * p.heads * p.tokens + kMergeThreads / 32 - 1) / (kMergeThreads / 32)};
}

struct MergeRow {
  int64_t index, batch, head, token;

  // The calling warp's row; index past the last one where it has none.
  ATTN_DEVICE static MergeRow mine(int64_t heads, int64_t tokens) {
    const int64_t i = static_cast<int64_t>(seam::block_x()) * (kMergeThreads / 32) + seam::warp();
    return {i, i / tokens / heads, i / tokens % heads, i % tokens};
  }
  template <class T> ATTN_DEVICE T* of(const PartsView& v, int64_t part) const {
    return static_cast<T*>(v.data) + part * v.part + batch * v.batch + head * v.head + token * v.token;
  }
};

// Merges the calling warp's row of parts of type From into `out`.
template <class From, class T> ATTN_DEVICE void merge_row(const MergeStatesParams& p, const MergeRow& row, T* out) {
  constexpr int kFeatures = 4;  // of a lane at once: loads in flight
  const float lse = merged_lse<float>(p.parts, [&](int64_t n) { return *row.of<const float>(p.lses, n); });
  if (seam::lane() == 0) static_cast<float*>(p.lse)[row.index] = lse;
  for (int64_t first = seam::lane(); first < p.dim; first += 32 * kFeatures) {
    float sum[kFeatures] = {};
    for (int64_t n = 0; n < p.parts; ++n) {
      const float weight = part_weight(*row.of<const float>(p.lses, n), lse);
      if (weight == 0) continue;  // an empty part is never read
      const From* x = row.of<const From>(p.outs, n);
      for (int i = 0; i < kFeatures; ++i) {
        const int64_t d = first + 32 * i;
        if (d < p.dim) sum[i] += weight * seam::to_float(x[d]);
      }
    }
    for (int i = 0; i < kFeatures; ++i) {
      const int64_t d = first + 32 * i;
      if (d < p.dim) out[d] = seam::from_float<T>(sum[i]);
    }
  }
}

template <class T> struct MergeStates {
  static constexpr int kThreads = kMergeThreads;
  using Params = MergeStatesParams;
  struct Shared {};
  static Grid grid(const Params& p) { return merge_grid(p); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const MergeRow row = MergeRow::mine(p.heads, p.tokens);
    if (row.index >= p.batch * p.heads * p.tokens) return;
    merge_row<T>(p, row, static_cast<T*>(p.out) + row.index * p.dim);
  }
};

// The same of float32 parts (decode_split.h), into rows with strides.
template <class T> struct MergeSplits {
  static constexpr int kThreads = kMergeThreads;
  using Params = MergeSplitsParams;
  struct Shared {};
  static Grid grid(const Params& p) { return merge_grid(p.states); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const MergeRow row = MergeRow::mine(p.states.heads, p.states.tokens);
    if (row.index >= p.states.batch * p.states.heads * p.states.tokens) return;
    T* out = static_cast<T*>(p.out.data) + row.batch * p.out.batch + row.head * p.out.head + row.token * p.out.token;
    merge_row<float>(p.states, row, out);
  }
};

// d out_n = w_n dout;  d l_n = w_n (dlse + dout . out_n - sum_m w_m dout . out_m)
template <class T> struct MergeStatesBackward {
  static constexpr int kThreads = kMergeThreads;
  using Params = MergeStatesBackwardParams;
  struct Shared {};
  static Grid grid(const Params& p) { return merge_grid(p); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const int64_t rows = p.batch * p.heads * p.tokens;
    const MergeRow row = MergeRow::mine(p.heads, p.tokens);
    if (row.index >= rows) return;
    const float lse = static_cast<const float*>(p.lse)[row.index];
    const T* dout = static_cast<const T*>(p.dout.data) + row.batch * p.dout.batch + row.head * p.dout.head +
                    row.token * p.dout.token;
    float dlse = 0;
    if (p.dlse.data) {
      dlse = static_cast<const float*>(
          p.dlse.data)[row.batch * p.dlse.batch + row.head * p.dlse.head + row.token * p.dlse.token];
    }
    float* dlses = static_cast<float*>(p.dlses) + row.index;
    float mean = 0;
    for (int64_t n = 0; n < p.parts; ++n) {
      const float weight = part_weight(*row.of<const float>(p.lses, n), lse);
      const T* x = row.of<const T>(p.outs, n);
      T* dx = static_cast<T*>(p.douts) + (n * rows + row.index) * p.dim;
      float projection = 0;
      for (int64_t d = seam::lane(); d < p.dim; d += 32) {
        const float g = weight == 0 ? 0 : seam::to_float(dout[d]);
        if (weight != 0) projection += g * seam::to_float(x[d]);
        dx[d] = seam::from_float<T>(weight * g);
      }
      for (int step = 16; step > 0; step /= 2) projection += seam::shuffle_xor(projection, step);
      if (seam::lane() == 0) dlses[n * rows] = projection;
      mean += weight * projection;
    }
    // Lane 0 reads back what it wrote itself.
    for (int64_t n = 0; seam::lane() == 0 && n < p.parts; ++n) {
      const float weight = part_weight(*row.of<const float>(p.lses, n), lse);
      dlses[n * rows] = weight == 0 ? 0 : weight * (dlse + dlses[n * rows] - mean);
    }
  }
};

}  // namespace attn::cuda
