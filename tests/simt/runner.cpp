#include "simt/runner.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "simt/async.h"
#include "simt/fiber.h"

namespace attn::simt {
namespace {

// The shadow knows of plain accesses through the compiler's instrumentation, which AddressSanitizer excludes.
#if defined(ATTN_SIMT_RACES)
constexpr bool kShadow = true;
#else
constexpr bool kShadow = false;
#endif

std::string text(const Where& w) {
  const char* name = std::strrchr(w.file_name(), '/');
  return std::string(name ? name + 1 : w.file_name()) + ":" + std::to_string(w.line());
}

// Threads that wait for each other.
struct Meeting {
  std::string name;
  int expected = 0;
  Where where;
  std::vector<int> threads;
  std::vector<int> passing;  // those of them that only count
  void (*op)(void* const*) = nullptr;
  void* arguments[kGroup] = {};
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
  int group;
};

struct Thread {
  Fiber fiber;
  int index = 0;
  bool done = false;
  const Meeting* waits = nullptr;
  std::function<bool()> ready;  // or this, until it holds
  std::string ready_what;
  std::vector<Copy> copies;  // issued and not awaited, oldest first
  int group = 0;
};

struct Block {
  Grid index;
  int threads = 0;
  const std::function<void(void*)>* body = nullptr;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<std::unique_ptr<Thread>> thread;
  Meeting barriers[16];
  std::vector<Meeting> warps, groups;
  Thread* running = nullptr;
  std::string error;
  Shadow shadow;
};

Block block;

void thread_body(void* argument) {
  Thread* t = static_cast<Thread*>(argument);
  try {
    (*block.body)(block.shared);
  } catch (const Error& error) { block.error = error.what(); }
  t->done = true;
  for (;;) t->fiber.leave();
}

std::string stuck() {
  std::string s = "deadlock in block " + std::to_string(block.index.x) + "," + std::to_string(block.index.y) + "," +
                  std::to_string(block.index.z) + ":";
  auto describe = [&](const Meeting& m, const std::string& suffix) {
    if (m.threads.empty()) return;
    s += " " + std::to_string(m.threads.size()) + " of " + std::to_string(m.expected) +
         " threads (first: " + std::to_string(m.threads[0]) + ") wait at " + m.name + suffix + " in " + text(m.where) +
         ";";
  };
  for (const Meeting& m : block.barriers) describe(m, "");
  for (size_t w = 0; w < block.warps.size(); ++w) describe(block.warps[w], " of warp " + std::to_string(w));
  for (size_t g = 0; g < block.groups.size(); ++g) describe(block.groups[g], " of warpgroup " + std::to_string(g));
  for (int i = 0; i < block.threads; ++i) {
    const Thread& t = *block.thread[static_cast<size_t>(i)];
    if (t.done || !t.ready) continue;
    s += " thread " + std::to_string(i) + " waits at " + t.ready_what + ";";
    i = (i / kWarp + 1) * kWarp - 1;  // one of a warp is enough
  }
  int done = 0;
  for (int i = 0; i < block.threads; ++i) done += block.thread[static_cast<size_t>(i)]->done;
  return s + " " + std::to_string(done) + " have ended";
}

// The calling thread joins a meeting; returns true to the one that completes it. Threads that wait do so in one place.
bool arrive(Meeting& m, const std::string& name, int expected, const Where& where, bool waits = true) {
  const bool first = m.threads.size() == m.passing.size();  // of those that wait
  if (m.threads.empty()) {
    m.name = name;
    m.expected = expected;
    m.where = where;
  } else if (m.name != name || m.expected != expected ||
             (waits && !first &&
              (m.where.line() != where.line() || std::strcmp(m.where.file_name(), where.file_name()) != 0))) {
    fail("divergence: thread " + std::to_string(m.threads[0]) + " waits at " + m.name + " (" +
         std::to_string(m.expected) + " threads) in " + text(m.where) + ", thread " +
         std::to_string(block.running->index) + " at " + name + " (" + std::to_string(expected) + " threads) in " +
         text(where));
  }
  if (waits && first) m.where = where;
  m.threads.push_back(block.running->index);
  if (!waits) m.passing.push_back(block.running->index);
  return static_cast<int>(m.threads.size()) == expected;
}

void finish(Meeting& m) {
  for (int t : m.threads) {
    Thread& thread = *block.thread[static_cast<size_t>(t)];
    if (thread.waits == &m) thread.waits = nullptr;
  }
  m.threads.clear();
  m.passing.clear();
}

void wait(const Meeting& m) {
  Thread* self = block.running;
  self->waits = &m;
  self->fiber.leave();
}

std::string placed(const std::string& what) {
  return "block " + std::to_string(block.index.x) + "," + std::to_string(block.index.y) + "," +
         std::to_string(block.index.z) + ": " + what;
}

void run_block(const std::vector<int>& turns) {
  std::memset(block.shared, 0xff, block.shared_bytes);
  if (kShadow) block.shadow.reset(block.shared, block.shared_bytes, block.threads / kWarp);
  for (Meeting& m : block.barriers) m = {};
  block.warps.assign(static_cast<size_t>(block.threads / kWarp), {});
  block.groups.assign(static_cast<size_t>((block.threads + kGroup - 1) / kGroup), {});
  reset_async();
  for (int i = 0; i < block.threads; ++i) {
    Thread& t = *block.thread[static_cast<size_t>(i)];
    t.index = i;
    t.done = false;
    t.waits = nullptr;
    t.ready = nullptr;
    t.copies.clear();
    t.group = 0;
    t.fiber.reset(thread_body, &t);
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (int i : turns) {
      Thread& t = *block.thread[static_cast<size_t>(i)];
      if (t.done || t.waits) continue;
      if (t.ready) {
        block.running = &t;
        const bool ready = t.ready();
        block.running = nullptr;
        if (!ready) continue;
        t.ready = nullptr;
      }
      progress = true;
      block.running = &t;
      t.fiber.enter();
      block.running = nullptr;
      if (!block.error.empty()) throw Error(block.error);
    }
  }
  for (int i = 0; i < block.threads; ++i) {
    if (!block.thread[static_cast<size_t>(i)]->done) throw Error(stuck());
  }
  for (int i = 0; i < block.threads; ++i) {
    if (!block.thread[static_cast<size_t>(i)]->copies.empty())
      throw Error(placed("thread " + std::to_string(i) + " ended before its copies were committed and waited for"));
  }
  const std::string left = left_async();
  if (!left.empty()) throw Error(placed(left));
}

// Called from where the compiler expects no exception, so the fiber is left for good instead.
void check_access(const void* at, size_t bytes, Touch kind) {
  if (!kShadow || !block.running) return;
  const std::string wrong = block.shadow.access(at, bytes, block.running->index, kind);
  if (wrong.empty()) return;
  block.error = placed(wrong);
  for (;;) block.running->fiber.leave();
}

}  // namespace

Grid block_index() { return block.index; }
int thread_index() { return block.running->index; }
int block_threads() { return block.threads; }

void fail(const std::string& what) { throw Error(placed(what)); }

void barrier(int id, int threads, const Where& where, bool waits) {
  if (id < 0 || id > 15) fail("barrier " + std::to_string(id) + " in " + text(where) + ": there are 0 to 15");
  if (threads % kWarp || threads < kWarp || threads > block.threads)
    fail("barrier of " + std::to_string(threads) + " threads in " + text(where) +
         ": not a multiple of a warp within the block");
  Meeting& m = block.barriers[id];
  if (!arrive(m, "barrier " + std::to_string(id), threads, where, waits)) return waits ? wait(m) : void();
  std::vector<int> lanes(static_cast<size_t>(block.threads / kWarp), 0), passing(lanes);
  for (int t : m.threads) ++lanes[static_cast<size_t>(t / kWarp)];
  for (int t : m.passing) ++passing[static_cast<size_t>(t / kWarp)];
  std::vector<char> arrived, waited;
  for (size_t w = 0; w < lanes.size(); ++w) {
    if (lanes[w] % kWarp != 0 || passing[w] % kWarp != 0) fail("part of a warp at " + m.name + " in " + text(where));
    arrived.push_back(lanes[w] != 0);
    waited.push_back(lanes[w] > passing[w]);
  }
  if (kShadow) block.shadow.join(arrived, waited);
  finish(m);
}

void meet(const char* name, void* argument, void (*op)(void* const*), const Where& where) {
  const int warp = block.running->index / kWarp, lane = block.running->index % kWarp;
  Meeting& m = block.warps[static_cast<size_t>(warp)];
  m.arguments[lane] = argument;
  if (!arrive(m, name, kWarp, where)) return wait(m);
  if (op) {
    op(m.arguments);
  } else if (kShadow) {  // a meeting without data orders memory (__syncwarp); others do not
    std::vector<char> warps(block.warps.size(), 0);
    warps[static_cast<size_t>(warp)] = 1;
    block.shadow.join(warps, warps);
  }
  finish(m);
}

void meet_group(const char* name, void* argument, void (*op)(void* const*), const Where& where) {
  const int group = block.running->index / kGroup;
  if ((group + 1) * kGroup > block.threads) fail(std::string(name) + ": threads past the last whole warpgroup");
  Meeting& m = block.groups[static_cast<size_t>(group)];
  m.arguments[block.running->index % kGroup] = argument;
  if (!arrive(m, name, kGroup, where)) return wait(m);
  op(m.arguments);
  finish(m);
}

void wait_until(std::function<bool()> ready, std::string what, const Where& where) {
  Thread* self = block.running;
  self->ready = std::move(ready);
  {
    // A fiber that never comes back must not hold memory: move construction empties `what`, assignment might not.
    const std::string taken = std::move(what);
    self->ready_what = taken + " in " + text(where);
  }
  self->fiber.leave();
}

void touch(const void* at, size_t bytes, Touch kind) { check_access(at, bytes, kind); }
Shadow* shadow() { return kShadow ? &block.shadow : nullptr; }
char* shared_base() { return block.shared; }
size_t shared_offset(const char* what, const void* at, size_t bytes) {
  const char* begin = static_cast<const char*>(at);
  if (begin < block.shared || begin + bytes > block.shared + block.shared_bytes)
    fail(std::string(what) + ": not in the block's shared memory");
  return static_cast<size_t>(begin - block.shared);
}

void copy_later(void* shared, const void* global, int bytes) {
  const char* to = static_cast<const char*>(shared);
  if (to < block.shared || to + 16 > block.shared + block.shared_bytes) fail("cp.async: destination isn't shared");
  if (reinterpret_cast<uintptr_t>(shared) % 16) fail("cp.async: destination isn't a multiple of 16 bytes");
  if (bytes < 0 || bytes > 16) fail("cp.async: " + std::to_string(bytes) + " bytes");
  if (bytes > 0 && reinterpret_cast<uintptr_t>(global) % 16) fail("cp.async: source isn't a multiple of 16 bytes");
  check_access(shared, 16, Touch::copy);
  block.running->copies.push_back({shared, global, bytes, block.running->group});
}

void commit_copies() { ++block.running->group; }

void wait_copies(int groups_left) {
  Thread& t = *block.running;
  size_t n = 0;
  for (; n < t.copies.size() && t.copies[n].group < t.group - groups_left; ++n) {
    const Copy& c = t.copies[n];
    std::memset(c.to, 0, 16);
    if (c.bytes > 0) std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
    if (kShadow) block.shadow.arrived(c.to, 16, t.index);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(n));
}

void run_blocks(Grid grid, int threads, size_t shared_bytes, Order order, const std::function<void(void*)>& body) {
  std::vector<int> turns;
  for (int i = 0; i < threads; ++i) turns.push_back(order == Order::backward ? threads - 1 - i : i);
  std::mt19937 random(1);
  if (order == Order::mixed) std::shuffle(turns.begin(), turns.end(), random);
  while (static_cast<int>(block.thread.size()) < threads) block.thread.push_back(std::make_unique<Thread>());
  // Exact size: AddressSanitizer sees accesses past it. Aligned as on the device.
  void* memory = nullptr;
  if (posix_memalign(&memory, kSharedAlign, std::max<size_t>(shared_bytes, 1)) != 0) throw std::bad_alloc();
  std::unique_ptr<char, void (*)(void*)> shared(static_cast<char*>(memory), std::free);
  block.threads = threads;
  block.body = &body;
  block.shared = shared.get();
  block.shared_bytes = shared_bytes;
  block.error.clear();
  for (int64_t z = 0; z < grid.z; ++z)
    for (int64_t y = 0; y < grid.y; ++y)
      for (int64_t x = 0; x < grid.x; ++x) {
        block.index = {x, y, z};
        run_block(turns);
      }
}

}  // namespace attn::simt

#if defined(ATTN_SIMT_RACES)
// Kernels are compiled with -fsanitize=thread, whose callbacks for memory accesses are answered here (its own runtime
// isn't linked).
extern "C" {
using attn::simt::Touch;
#define ATTN_ACCESS(name, bytes, kind) \
  void name(void* at) { attn::simt::touch(at, bytes, Touch::kind); }
#define ATTN_ACCESSES(bytes)                             \
  ATTN_ACCESS(__tsan_read##bytes, bytes, read)           \
  ATTN_ACCESS(__tsan_write##bytes, bytes, write)         \
  ATTN_ACCESS(__tsan_unaligned_read##bytes, bytes, read) \
  ATTN_ACCESS(__tsan_unaligned_write##bytes, bytes, write)
ATTN_ACCESSES(1)
ATTN_ACCESSES(2)
ATTN_ACCESSES(4)
ATTN_ACCESSES(8)
ATTN_ACCESSES(16)
void __tsan_read_range(void* at, unsigned long bytes) { attn::simt::touch(at, bytes, Touch::read); }
void __tsan_write_range(void* at, unsigned long bytes) { attn::simt::touch(at, bytes, Touch::write); }
// Clang's names for block copies.
void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  attn::simt::touch(from, bytes, Touch::read);
  attn::simt::touch(to, bytes, Touch::write);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, unsigned long bytes) {
  attn::simt::touch(from, bytes, Touch::read);
  attn::simt::touch(to, bytes, Touch::write);
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
  attn::simt::touch(to, bytes, Touch::write);
  return std::memset(to, value, bytes);
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
#endif
