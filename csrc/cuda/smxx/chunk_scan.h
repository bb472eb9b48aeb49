// States of the chunks of a scan, added up: what each chunk adds becomes the sum of those before it (or, reversed,
// after it), and the sum of all. For every architecture; memory-bound. A thread adds one element, chunk after chunk.
#pragma once

#include "cuda/grid.h"
#include "cuda/scan_chunks.h"
#include "cuda/seam.h"

namespace attn::cuda {

struct ChunkScanParams {
  ScanChunks chunks;
  int64_t heads, size;
  float* slots;          // [slots, heads, size]
  const float* start;    // null: zeros, or [sequences, heads, size]: the state before any chunk
  float* total;          // null, or where the sum of all goes: element i of group g = sequence * heads + head
  int64_t total_stride;  // at g total_stride + i
  bool exclusive;        // write the sums before each chunk to its slot; otherwise slots stay as they are
  bool reverse;          // from the last chunk to the first
};

struct ChunkScan {
  static constexpr int kThreads = 128;
  using Params = ChunkScanParams;
  struct Shared {};

  ATTN_HD static int64_t blocks(const Params& p) { return (p.size + kThreads - 1) / kThreads; }
  static Grid grid(const Params& p) { return {p.chunks.sequences * p.heads * blocks(p)}; }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    constexpr int kFlight = 8;  // loads in flight
    const int64_t g = seam::block_x() / blocks(p), i = seam::block_x() % blocks(p) * kThreads + seam::thread();
    if (i >= p.size) return;
    const int64_t s = g / p.heads, n = p.chunks.chunks(s), first = p.chunks.first_slot(s);
    auto at = [&](int64_t chunk) {
      return p.slots + ((first + (p.reverse ? n - 1 - chunk : chunk)) * p.heads + g % p.heads) * p.size + i;
    };
    float sum = p.start ? p.start[g * p.size + i] : 0;
    for (int64_t c = 0; c < n; c += kFlight) {
      float x[kFlight];
      ATTN_UNROLL
      for (int j = 0; j < kFlight; ++j) x[j] = c + j < n ? *at(c + j) : 0;
      ATTN_UNROLL
      for (int j = 0; j < kFlight; ++j) {
        if (p.exclusive && c + j < n) *at(c + j) = sum;
        sum += x[j];
      }
    }
    if (p.total) p.total[g * p.total_stride + i] = sum;
  }
};

}  // namespace attn::cuda
