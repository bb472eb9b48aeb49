// Chunks of prefix-softmax pooling added up: what each adds becomes the sum of those before it, or after it in reverse.
// For every architecture; memory-bound. A block takes a sequence's head and 32 columns; its warps share the chunks,
// each first adding up its part, so that long sequences don't wait for one walk from end to end.
#pragma once

#include "cuda/smxx/prefix_chunk.h"

namespace attn::cuda {

struct PrefixScanParams {
  PrefixWork w;
  bool reverse;
};

struct PrefixScan {
  static constexpr int kParts = 8, kThreads = 32 * kParts;
  using Params = PrefixScanParams;
  struct Shared { float top[kParts], sum[kParts][32]; };

  static Grid grid(const Params& p) { return {p.w.p.sequences * p.w.p.heads, (p.w.p.dim + 1 + 31) / 32}; }

  struct Sum {
    RunningTop top;
    float sum = 0;
    ATTN_DEVICE void add(float other_top, float other) {
      top.take(other_top);
      sum = top.add(sum, other);
    }
  };

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const PrefixWork& w = p.w;
    const int64_t heads = w.p.heads, s = seam::block_x() / heads, head = seam::block_x() % heads;
    const int64_t column = static_cast<int64_t>(seam::block_y()) * 32 + seam::lane(), size = w.p.dim + 1;
    const int64_t n = w.chunks.chunks(s), first = w.chunks.first_slot(s), each = (n + kParts - 1) / kParts;
    const int64_t begin = seam::warp() * each, end = begin + each < n ? begin + each : n;
    const auto item = [&](int64_t chunk) { return (first + (p.reverse ? n - 1 - chunk : chunk)) * heads + head; };
    const auto walk = [&](Sum& sum, auto&& write) {
      constexpr int kFlight = 8;  // loads in flight
      ATTN_ROLLED
      for (int64_t c = begin; c < end; c += kFlight) {
        float top[kFlight], x[kFlight];
        ATTN_UNROLL
        for (int i = 0; i < kFlight; ++i) {
          top[i] = c + i < end ? w.top[item(c + i)] : -INFINITY;
          x[i] = c + i < end && column < size ? w.sums[item(c + i) * size + column] : 0;
        }
        ATTN_UNROLL
        for (int i = 0; i < kFlight; ++i) {
          if (c + i < end) write(item(c + i));
          sum.add(top[i], x[i]);
        }
      }
    };
    Sum sum;
    walk(sum, [](int64_t) {});
    if (seam::lane() == 0) shared.top[seam::warp()] = sum.top.top;
    shared.sum[seam::warp()][seam::lane()] = sum.sum;
    seam::sync_block();
    sum = {};
    for (int i = 0; i < seam::warp(); ++i) sum.add(shared.top[i], shared.sum[i][seam::lane()]);
    walk(sum, [&](int64_t at) {
      if (column < size) w.sums[at * size + column] = sum.sum;
      if (column == 0) w.before[at] = sum.top.top;
    });
  }
};

}  // namespace attn::cuda
