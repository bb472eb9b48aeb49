// What is known about each byte of a block's shared memory: who wrote it, who read it, and when. "When" is a count of
// the synchronisations of the accessing warp; clocks say which of them another warp has waited for. TMA, which writes
// on its own, counts as one warp more.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace attn::simt {

enum class Touch {
  read,
  write,
  copy,        // a write whose bytes arrive later (cp.async)
  group_read,  // by wgmma, which sees plain writes only after a fence of the writer
  tma_write,   // bytes arrive later; the next of TMA's epochs
};

// [warp], TMA last: what was done in epochs below is known to be over.
using Clock = std::vector<uint32_t>;

class Shadow {
 public:
  void reset(const char* base, size_t bytes, int warps);
  // A synchronisation of whole warps: who waits knows from then on what those who arrive have done. [warps].
  void join(const std::vector<char>& arrive, const std::vector<char>& wait);
  // The two halves of a synchronisation for one warp.
  Clock release(int warp);
  void acquire(int warp, const Clock& clock);
  // Empty, or what is wrong with this access.
  std::string access(const void* at, size_t bytes, int thread, Touch kind);
  // Bytes of a cp.async have arrived: a write of `thread` now.
  void arrived(const void* at, size_t bytes, int thread);
  // Bytes of TMA have arrived.
  void tma_arrived(const void* at, size_t bytes);
  // TMA's epochs so far: what an mbarrier's clock says of TMA once these writes count towards it.
  uint32_t tma_epoch() const { return tma_epoch_; }
  // Plain writes of `thread` until now may be seen by wgmma.
  void fence(int thread) { ++fences_[static_cast<size_t>(thread)]; }

 private:
  struct Access {
    int32_t thread = -1;
    uint32_t epoch = 0;
    uint32_t fences = 0;  // of the thread until then
  };
  // Of the reads since the last write the first and the latest are kept: enough to see that somebody else reads.
  struct Cell {
    Access write, first_read, last_read;
    bool pending = false;
  };
  bool ordered(const Access& before, int thread) const;

  const char* base_ = nullptr;
  int warps_ = 0;
  uint32_t tma_epoch_ = 0;
  std::vector<Cell> cells_;
  std::vector<Clock> clock_;  // [warp]
  std::vector<uint32_t> fences_;
};

}  // namespace attn::simt
