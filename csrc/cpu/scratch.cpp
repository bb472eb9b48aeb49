// Per-thread scratch memory. It grows to the largest work item a thread has seen (about 1 MB) and lives as long as
// the thread, so kernels never allocate inside their loops.
#include <cstdlib>
#include <cstring>
#include <new>

#include "cpu/work.h"

namespace attn {

namespace {

struct Scratch {
  void* data = nullptr;
  int64_t size = 0;
  ~Scratch() { std::free(data); }
};

}  // namespace

void* thread_scratch(int64_t bytes) {
  thread_local Scratch scratch;
  if (bytes > scratch.size) {
    std::free(scratch.data);
    scratch.size = 0;
    const int64_t rounded = (bytes + 63) / 64 * 64;
    scratch.data = std::aligned_alloc(64, static_cast<size_t>(rounded));
    if (!scratch.data) throw std::bad_alloc();
    scratch.size = rounded;
  }
#ifdef ATTN_POISON_SCRATCH
  std::memset(scratch.data, 0xff,
              static_cast<size_t>(scratch.size));  // NaN in every float type: what is read was written
#endif
  return scratch.data;
}

}  // namespace attn
