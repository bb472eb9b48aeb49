// Scans of items of a few numbers, over the threads of a block and over the chunks of a sequence. An item says what
// nothing is (none), how it follows another (join, associative) and what becomes of its numbers (map). For every
// architecture.
#pragma once

#include "cuda/grid.h"
#include "cuda/scan_chunks.h"
#include "cuda/seam.h"

namespace attn::cuda {

// In shared memory.
template <class Item, int kThreads> struct BlockScan {
  Item warps[kThreads / 32];

  struct Result { Item before, all; };  // of threads before the calling one; of all

  // For the whole block, with a barrier inside; another must stand before the next call.
  ATTN_DEVICE Result of(Item x) {
    const auto from = [](Item item, int lane) {
      return item.map([lane](float number) { return seam::shuffle(number, lane); });
    };
    for (int step = 1; step < 32; step *= 2) {
      const Item before = from(x, seam::lane() < step ? seam::lane() : seam::lane() - step);
      if (seam::lane() >= step) x = Item::join(before, x);
    }
    if (seam::lane() == 31) warps[seam::warp()] = x;
    const Item left = from(x, seam::lane() == 0 ? 0 : seam::lane() - 1);
    seam::sync_block();
    Result r{Item::none(), Item::none()};
    for (int i = 0; i < kThreads / 32; ++i) {
      if (i == seam::warp()) r.before = r.all;
      r.all = Item::join(r.all, warps[i]);
    }
    if (seam::lane() > 0) r.before = Item::join(r.before, left);
    return r;
  }
};

template <class Item> struct ItemScanParams {
  ScanChunks chunks;
  int64_t heads;
  Item* items;   // [slots, heads]; becomes what stands before each
  Item* total;   // null, or [sequences, heads]
  bool reverse;  // from the last chunk to the first
};

template <class Item> struct ItemScan {
  static constexpr int kThreads = 256;
  using Params = ItemScanParams<Item>;
  struct Shared { BlockScan<Item, kThreads> scan; };
  static Grid grid(const Params& p) { return {p.chunks.sequences * p.heads}; }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const int64_t g = seam::block_x(), s = g / p.heads, n = p.chunks.chunks(s), first = p.chunks.first_slot(s);
    Item sum = Item::none();
    for (int64_t base = 0; base < n; base += kThreads) {
      const int64_t i = base + seam::thread();
      Item* at = p.items + (first + (p.reverse ? n - 1 - i : i)) * p.heads + g % p.heads;
      const auto scanned = shared.scan.of(i < n ? *at : Item::none());
      if (i < n) *at = Item::join(sum, scanned.before);
      sum = Item::join(sum, scanned.all);
      seam::sync_block();
    }
    if (p.total && seam::thread() == 0) p.total[g] = sum;
  }
};

}  // namespace attn::cuda
