// A block's way along the key tiles of its rows, through shared memory.
#pragma once

#include "cuda/sm80/warp_attend.h"

namespace attn::cuda {

// A barrier of the block's first kThreads threads: all of them where kBarrier is 0, else by that number.
template <int kThreads, int kBarrier> ATTN_DEVICE void sync_threads() {
  if (kBarrier == 0) seam::sync_block();
  else seam::sync_named(kBarrier, kThreads);
}

// What warps answered to a question put to the block: an entry for each.
template <int kWarps> ATTN_DEVICE bool any_found(const int32_t (&found)[kWarps]) {
  int32_t any = 0;
  for (int w = 0; w < kWarps; ++w) any |= found[w];
  return any != 0;
}

// Does x hold in any thread of the block? To all of them; the next barrier sets `found` free.
template <int kBarrier = 0, int kWarps> ATTN_DEVICE bool block_any(bool x, int32_t (&found)[kWarps]) {
  x = seam::any(x);
  if (seam::lane() == 0) found[seam::warp()] = x;
  sync_threads<32 * kWarps, kBarrier>();
  return any_found(found);
}

// Looks for what isn't finite among the rows that the calling thread has copied; any_found after the next barrier.
template <int kThreads, class Rows, int kWarps>
ATTN_DEVICE void find_not_finite(Rows& rows, int32_t (&found)[kWarps]) {
  const bool here = seam::any(!rows.template mine_finite<kThreads>());
  if (seam::lane() == 0) found[seam::warp()] = here;
}

// Calls f(tile, scanned) in every thread for each key tile of the item's schedule, with its keys in shared.k and
// shared.v. Two barriers a tile: one before the copies (the tile before is done with), one after. While they fly, warp
// 0 walks the schedule for the tile after. Where some row may not see some key, `values` (one of the two) is scanned
// for what isn't finite: any_found(shared.found). Operands in two parts are always: no part of infinity may meet a 0.
template <int kThreads, int kBarrier = 0, class Shared, class Rows, class F>
ATTN_DEVICE void for_each_key_tile(const AttendParams& p, const RowItem& item, Shared& shared, Rows& values, F&& f) {
  const RowsReach reach = RowsReach::of(p, item, 0, item.rows);
  const int32_t end = item.group.keys;
  int32_t next = 0;
  if (seam::warp() == 0) next = fill_key_tile(p, item, next, end, shared.tile[0]);
  for (int turn = 0;; turn ^= 1) {
    const auto& t = shared.tile[turn];
    sync_threads<kThreads, kBarrier>();
    if (t.n == 0) break;
    load_keys<kThreads>(p, item, t, shared.k, shared.v);
    seam::copy_commit();
    if (seam::warp() == 0) next = fill_key_tile(p, item, next, end, shared.tile[turn ^ 1]);
    const bool scan = Products<typename Rows::Element>::kSplit || p.segment_k.data || !reach.sees_all(t, false);
    seam::copy_wait<0>();
    if (scan) find_not_finite<kThreads>(values, shared.found);
    sync_threads<kThreads, kBarrier>();
    f(t, scan);
  }
  seam::copy_commit();
  seam::copy_wait<0>();  // what the caller had begun, where there was no key
}

}  // namespace attn::cuda
