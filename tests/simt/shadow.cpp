#include "simt/shadow.h"

#include <algorithm>

namespace attn::simt {

void Shadow::reset(const char* base, size_t bytes, int warps) {
  base_ = base;
  warps_ = warps;
  tma_epoch_ = 0;
  cells_.assign(bytes, {});
  clock_.assign(static_cast<size_t>(warps), Clock(static_cast<size_t>(warps) + 1, 0));
  fences_.assign(static_cast<size_t>(warps) * 32, 0);
}

Clock Shadow::release(int warp) {
  Clock& own = clock_[static_cast<size_t>(warp)];
  ++own[static_cast<size_t>(warp)];
  return own;
}

void Shadow::acquire(int warp, const Clock& clock) {
  Clock& own = clock_[static_cast<size_t>(warp)];
  for (size_t i = 0; i < own.size(); ++i) own[i] = std::max(own[i], clock[i]);
}

void Shadow::join(const std::vector<char>& arrive, const std::vector<char>& wait) {
  Clock latest(static_cast<size_t>(warps_) + 1, 0);
  for (size_t w = 0; w < arrive.size(); ++w) {
    if (!arrive[w]) continue;
    const Clock one = release(static_cast<int>(w));
    for (size_t i = 0; i < latest.size(); ++i) latest[i] = std::max(latest[i], one[i]);
  }
  for (size_t w = 0; w < wait.size(); ++w) {
    if (wait[w]) acquire(static_cast<int>(w), latest);
  }
}

bool Shadow::ordered(const Access& before, int thread) const {
  if (before.thread < 0 || before.thread == thread) return true;
  return before.epoch < clock_[static_cast<size_t>(thread / 32)][static_cast<size_t>(before.thread / 32)];
}

std::string Shadow::access(const void* at, size_t bytes, int thread, Touch kind) {
  const bool write = kind == Touch::write || kind == Touch::copy || kind == Touch::tma_write;
  const char* begin = static_cast<const char*>(at);
  if (begin + bytes <= base_ || begin >= base_ + cells_.size()) return {};
  const size_t warp = static_cast<size_t>(thread / 32);
  Access now{thread, clock_[warp][warp], fences_[static_cast<size_t>(thread)]};
  if (kind == Touch::tma_write) now = {32 * warps_, tma_epoch_++, 0};
  auto text = [&](const char* what, size_t byte, int other) {
    std::string s = std::string(what) + " by thread " + std::to_string(thread) + " at byte " + std::to_string(byte);
    return other < 0 ? s
                     : s + ", which " + (other < 32 * warps_ ? "thread " + std::to_string(other) : std::string("TMA"));
  };
  for (size_t i = 0; i < bytes; ++i) {
    if (begin + i < base_ || begin + i >= base_ + cells_.size())
      return text("shared memory: access past its end", static_cast<size_t>(begin + i - base_), -1);
    const size_t byte = static_cast<size_t>(begin + i - base_);
    Cell& c = cells_[byte];
    if (c.pending) return text("shared memory: access before its copy was waited for,", byte, -1);
    if (write) {
      if (!ordered(c.write, thread))
        return text("shared memory race: write", byte, c.write.thread) + " wrote since the last barrier";
      for (const Access& read : {c.first_read, c.last_read}) {
        if (!ordered(read, thread))
          return text("shared memory race: write", byte, read.thread) + " read since the last barrier";
      }
      c.write = now;
      c.first_read = c.last_read = {};
      c.pending = kind != Touch::write;
    } else {
      if (c.write.thread < 0) return text("shared memory: read of what nobody wrote", byte, -1);
      if (!ordered(c.write, thread))
        return text("shared memory race: read", byte, c.write.thread) + " wrote since the last barrier";
      if (kind == Touch::group_read && c.write.thread < 32 * warps_ &&
          fences_[static_cast<size_t>(c.write.thread)] <= c.write.fences)
        return text("shared memory: wgmma's read", byte, c.write.thread) + " wrote without a publish_shared since";
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
    cells_[i].write = {thread, clock_[warp][warp], fences_[static_cast<size_t>(thread)]};
  }
}

void Shadow::tma_arrived(const void* at, size_t bytes) {
  const size_t first = static_cast<size_t>(static_cast<const char*>(at) - base_);
  for (size_t i = first; i < first + bytes && i < cells_.size(); ++i) cells_[i].pending = false;
}

}  // namespace attn::simt
