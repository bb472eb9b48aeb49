// What is known about each byte of a block's shared memory: who wrote it, who read it, and when. "When" is a count of
// the synchronisations of the accessing warp; clocks say which of them another warp has waited for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace attn::simt {

class Shadow {
 public:
  void reset(const char* base, size_t bytes, int warps);
  // A synchronisation of whole warps, [warps] true for those that take part.
  void join(const std::vector<char>& warps);
  // Empty, or what is wrong with this access. `pending`: the bytes arrive later (cp.async).
  std::string access(const void* at, size_t bytes, int thread, bool write, bool pending = false);
  // Bytes of a cp.async have arrived: a write of `thread` now.
  void arrived(const void* at, size_t bytes, int thread);

 private:
  struct Access {
    int32_t thread = -1;
    uint32_t epoch = 0;
  };
  // Of the reads since the last write the first and the latest are kept: enough to see that somebody else reads.
  struct Cell {
    Access write, first_read, last_read;
    bool pending = false;
  };
  bool ordered(const Access& before, int thread) const;

  const char* base_ = nullptr;
  int warps_ = 0;
  std::vector<Cell> cells_;
  std::vector<std::vector<uint32_t>> clock_;  // [warp][other warp]: epochs below are known to be over
};

}  // namespace attn::simt
