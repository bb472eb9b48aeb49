// Segment ids as the pool kernels take them (csrc/ops/pool_args.h has the CPU's rule): ascending within each sequence
// whatever they hold, a token that the mask drops having the id before it; and where each id's tokens begin.
#pragma once

#include "attn/schedule.h"
#include "cuda/seam.h"
#include "cuda/segment_call.h"
#include "cuda/token_tiles.h"

namespace attn::cuda {

// A block takes a sequence: a running maximum of its kept ids.
struct AscendingIds {
  static constexpr int kThreads = 512;
  static constexpr int kEach = 4;  // neighbours of a thread
  using Params = SegmentIdsParams;
  struct Shared { int32_t top[kThreads / 32]; };

  static Grid grid(const Params& p) { return {p.sequences.count}; }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const SequenceSpan span = span_inside(p.sequences, seam::block_x());
    const int32_t* ids = p.ids.data + span.batch * p.ids.batch + span.first * p.ids.token;
    int32_t* out = p.ascending + span.batch * p.sequences.tokens + span.first;
    int32_t before = 0;  // the greatest id of the steps before
    for (int64_t first = 0; first < span.length; first += kThreads * kEach) {
      const int64_t at = first + seam::thread() * kEach;
      int32_t top[kEach], last = 0;
      ATTN_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const int64_t t = at + i;
        if (t < span.length && taken(p.mask, span.batch, span.first + t)) last = max_i32(last, ids[t * p.ids.token]);
        top[i] = last;
      }
      // The maximum of a lane and all lanes before it; then of all warps before.
      for (int step = 1; step < 32; step *= 2) {
        const int32_t other = seam::shuffle(last, seam::lane() < step ? seam::lane() : seam::lane() - step);
        last = max_i32(last, other);
      }
      if (seam::lane() == 31) shared.top[seam::warp()] = last;
      const int32_t lower = seam::shuffle(last, seam::lane() == 0 ? 0 : seam::lane() - 1);
      seam::sync_block();
      int32_t mine = before;
      for (int w = 0; w < kThreads / 32; ++w) {
        if (w < seam::warp()) mine = max_i32(mine, shared.top[w]);
        before = max_i32(before, shared.top[w]);
      }
      if (seam::lane() > 0) mine = max_i32(mine, lower);
      ATTN_UNROLL
      for (int i = 0; i < kEach; ++i) {
        if (at + i < span.length) out[at + i] = max_i32(mine, top[i]);
      }
      seam::sync_block();  // shared.top is written anew
    }
  }
};

// A thread takes an id of a batch entry; one past the last id has what no segment holds.
struct SegmentOffsets {
  static constexpr int kThreads = 128;
  using Params = SegmentOffsetsParams;
  struct Shared {};

  static Grid grid(const Params& p) { return {(p.batch * (p.segments + 1) + kThreads - 1) / kThreads}; }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const int64_t index = static_cast<int64_t>(seam::block_x()) * kThreads + seam::thread();
    if (index >= p.batch * (p.segments + 1)) return;
    const int64_t batch = index / (p.segments + 1);
    const int32_t id = static_cast<int32_t>(index - batch * (p.segments + 1));
    p.offsets[index] = lower_bound_i32(p.ascending + batch * p.tokens, static_cast<int32_t>(p.tokens), id);
  }
};

}  // namespace attn::cuda
