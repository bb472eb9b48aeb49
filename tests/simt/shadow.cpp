#include "simt/shadow.h"

#include <algorithm>

namespace attn::simt {

void Shadow::reset(const char* base, size_t bytes, int warps) {
  base_ = base;
  warps_ = warps;
  cells_.assign(bytes, {});
  clock_.assign(static_cast<size_t>(warps), std::vector<uint32_t>(static_cast<size_t>(warps), 0));
}

void Shadow::join(const std::vector<char>& warps) {
  std::vector<uint32_t> latest(static_cast<size_t>(warps_), 0);
  for (size_t w = 0; w < warps.size(); ++w) {
    if (!warps[w]) continue;
    ++clock_[w][w];
    for (size_t i = 0; i < latest.size(); ++i) latest[i] = std::max(latest[i], clock_[w][i]);
  }
  for (size_t w = 0; w < warps.size(); ++w) {
    if (warps[w]) clock_[w] = latest;
  }
}

bool Shadow::ordered(const Access& before, int thread) const {
  if (before.thread < 0 || before.thread == thread) return true;
  return before.epoch < clock_[static_cast<size_t>(thread / 32)][static_cast<size_t>(before.thread / 32)];
}

std::string Shadow::access(const void* at, size_t bytes, int thread, bool write, bool pending) {
  const char* begin = static_cast<const char*>(at);
  if (begin + bytes <= base_ || begin >= base_ + cells_.size()) return {};
  const size_t warp = static_cast<size_t>(thread / 32);
  const Access now{thread, clock_[warp][warp]};
  auto text = [&](const char* what, size_t byte, int other) {
    std::string s = std::string(what) + " by thread " + std::to_string(thread) + " at byte " + std::to_string(byte);
    return other < 0 ? s : s + ", which thread " + std::to_string(other);
  };
  for (size_t i = 0; i < bytes; ++i) {
    if (begin + i < base_ || begin + i >= base_ + cells_.size())
      return text("shared memory: access past its end", static_cast<size_t>(begin + i - base_), -1);
    const size_t byte = static_cast<size_t>(begin + i - base_);
    Cell& c = cells_[byte];
    if (c.pending) return text("shared memory: access before its cp.async was waited for,", byte, -1);
    if (write) {
      if (!ordered(c.write, thread))
        return text("shared memory race: write", byte, c.write.thread) + " wrote since the last barrier";
      for (const Access& read : {c.first_read, c.last_read}) {
        if (!ordered(read, thread))
          return text("shared memory race: write", byte, read.thread) + " read since the last barrier";
      }
      c.write = now;
      c.first_read = c.last_read = {};
      c.pending = pending;
    } else {
      if (c.write.thread < 0) return text("shared memory: read of what nobody wrote", byte, -1);
      if (!ordered(c.write, thread))
        return text("shared memory race: read", byte, c.write.thread) + " wrote since the last barrier";
      if (c.first_read.thread < 0) c.first_read = now;
      c.last_read = now;
    }
  }
  return {};
}

void Shadow::arrived(const void* at, size_t bytes, int thread) {
  const size_t first = static_cast<size_t>(static_cast<const char*>(at) - base_);
  const size_t warp = static_cast<size_t>(thread / 32);
  for (size_t i = first; i < first + bytes && i < cells_.size(); ++i) {
    cells_[i].pending = false;
    cells_[i].write = {thread, clock_[warp][warp]};
  }
}

}  // namespace attn::simt
