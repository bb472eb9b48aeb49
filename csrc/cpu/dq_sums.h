// Sums of dQ. Every item of the backward pass (a key range) contributes to the rows that see its keys, and the
// contributions of a row tile are added in ascending order of the key ranges: an item waits for its turn. The result
// is the same bit for bit with any number of threads. Items are started in ascending order, and an item only waits
// for lower ones, so some item can always go on.
#pragma once

#include <atomic>
#include <thread>

#include "cpu/backward_rows.h"

ATTN_NAMESPACE_BEGIN

template <class In> struct DqSums {
  using A = Acc<Operand<In>>;
  const AttendBackwardParams& b;
  const AttendParams& p;
  const int64_t columns;
  const bool in_place;                    // dq itself holds the sums
  int64_t stride;                         // from a row to the next
  A* sums = nullptr;                      // [B, H, Tq, columns] otherwise
  int64_t tiles = 0;                      // row tiles of a sequence at most
  std::atomic<int32_t>* turns = nullptr;  // [sequences, H, tiles]: contributions a row tile has received
  std::atomic<bool> failed{false};

  explicit DqSums(const AttendBackwardParams& params)
      : b(params), p(params.forward), columns(round_up_lanes<Operand<In>>(p.dim)),
        in_place(std::is_same<In, A>::value && p.dim == columns) {
    stride = in_place ? b.dq.token : columns;
    if (!b.dq.data) return;  // not wanted
    if (!in_place) sums = new A[static_cast<uint64_t>(p.batch * p.heads * p.tq * columns)];
    // A sequence that starts inside a block has one more tile than its length tells.
    const RowTiling tiling = row_tiling(p, 0, 0, kMaxRows);
    tiles = (p.tq / tiling.block + 2) * tiling.tiles_per_block;
    const int64_t count = sequence_count(p) * p.heads * tiles;
    turns = new std::atomic<int32_t>[static_cast<uint64_t>(count)];
    for (int64_t i = 0; i < count; ++i) turns[i].store(0, std::memory_order_relaxed);
  }
  ~DqSums() {
    delete[] sums;
    delete[] turns;
  }
  DqSums(const DqSums&) = delete;
  DqSums& operator=(const DqSums&) = delete;

  std::atomic<int32_t>* tile(int64_t which, int64_t head, int64_t t) {
    return turns + (which * p.heads + head) * tiles + t;
  }

  A* row(const Sequence& seq, int64_t head, int64_t query) const {
    const int64_t token = seq.q_token + query;
    if (in_place) return static_cast<A*>(b.dq.data) + seq.batch * b.dq.batch + head * b.dq.head + token * b.dq.token;
    return sums + ((seq.batch * p.heads + head) * p.tq + token) * columns;
  }

  template <class F> void for_each_row(F&& fn) const {
    constexpr int64_t kRows = 256;
    const int64_t strips = (p.tq + kRows - 1) / kRows;
    parallel_items(p.batch * p.heads * strips, [&](int64_t item, int) {
      const Sequence whole{item / strips / p.heads, 0, 0, 0, 0};
      const int64_t head = item / strips % p.heads, first = item % strips * kRows;
      for (int64_t t = first; t < p.tq && t < first + kRows; ++t) fn(whole, head, t);
    });
  }

  void clear() const {
    if (!b.dq.data) return;
    for_each_row([this](const Sequence& s, int64_t head, int64_t t) {
      std::memset(row(s, head, t), 0, columns * sizeof(A));
      if (b.dhead_gate) b.dhead_gate[(s.batch * p.heads + head) * p.tq + t] = 0;  // summed in turn like dQ
    });
  }

  // Scales the sums and rounds them into dq.
  void finish() const {
    if (!b.dq.data) return;
    for_each_row([this](const Sequence& s, int64_t head, int64_t t) {
      In* to = static_cast<In*>(b.dq.data) + s.batch * b.dq.batch + head * b.dq.head + t * b.dq.token;
      store_row(row(s, head, t), static_cast<A>(p.scale), to, p.dim);
    });
  }

  // Runs an item; if it throws, nobody waits for it in vain.
  template <class F> void guard(F&& fn) {
    try {
      fn();
    } catch (...) {
      failed.store(true);
      throw;
    }
  }
};

// An item's turn at a row tile: wait before adding; the destructor passes the turn on. Without a counter there is
// nothing to add to.
struct DqTurn {
  std::atomic<int32_t>* counter;
  const std::atomic<bool>& failed;
  const int32_t mine;
  bool mine_now = false;

  template <class Sums> DqTurn(Sums& sums, std::atomic<int32_t>* tile, int64_t turn)
      : counter(tile), failed(sums.failed), mine(static_cast<int32_t>(turn)) {}

  void wait() {
    if (mine_now) return;
    for (int spins = 0; counter->load(std::memory_order_acquire) != mine && !failed.load(std::memory_order_relaxed);
         ++spins) {
      if (spins >= 64) std::this_thread::yield();  // about a microsecond: the other item is inside its products
    }
    mine_now = true;
  }

  ~DqTurn() {
    if (!counter) return;
    wait();
    counter->store(mine + 1, std::memory_order_release);
  }
};

ATTN_NAMESPACE_END
