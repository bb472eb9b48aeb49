// Runs a kernel on the host. A kernel is a struct with Params, Shared, kThreads, and static grid(params) and
// run(params, shared), whose only ways to its surroundings are the functions of cuda/seam.h. Blocks run one after
// another; the threads of a block are fibers that change places where they wait for each other. See README.md.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#include "cuda/grid.h"
#include "simt/shadow.h"

namespace attn::simt {

// What a kernel did wrong.
struct Error : std::runtime_error { using std::runtime_error::runtime_error; };

using Grid = cuda::Grid;

// In which order the threads of a block get their turns. A right kernel gives the same bits for each.
enum class Order { forward, backward, mixed };

constexpr size_t kMaxShared = 227 << 10, kSharedAlign = 1024;  // of a block, sm_90

using Where = std::source_location;
constexpr int kWarp = 32, kGroup = 4 * kWarp;  // threads of a warp and of a warpgroup

// What the seam asks of the block in which the calling fiber runs.
Grid block_index();
int thread_index();
int block_threads();
// Without `wait` the caller only counts (bar.arrive).
void barrier(int id, int threads, const Where& where, bool wait = true);
// Lanes of a warp meet; the last one calls op with the arguments of all 32, in order of lanes.
void meet(const char* name, void* argument, void (*op)(void* const* arguments), const Where& where);
// The same for the threads of a warpgroup, which need not wait for the last one to be done with op. Orders nothing.
void meet_group(const char* name, void* argument, void (*op)(void* const* arguments), const Where& where);
// Gives way to other threads until ready().
void wait_until(std::function<bool()> ready, std::string what, const Where& where);
// Checks and records an access to shared memory that the compiler doesn't see.
void touch(const void* at, size_t bytes, Touch kind);
// What the shadow of shared memory is told of other kinds of synchronisation, by the calling warp; null where there is
// none (AddressSanitizer).
Shadow* shadow();
// An address of the block's shared memory as its offset; fails where [at, at + bytes) isn't inside.
size_t shared_offset(const char* what, const void* at, size_t bytes);
char* shared_base();
void copy_later(void* shared, const void* global, int bytes);
void commit_copies();
void wait_copies(int groups_left);
[[noreturn]] void fail(const std::string& what);

void run_blocks(Grid grid, int threads, size_t shared_bytes, Order order, const std::function<void(void*)>& body);

// Throws Error where the kernel breaks a rule. Shared memory starts as NaN (all bits set).
template <class K>
void launch(Grid grid, const typename K::Params& params, Order order = Order::forward) {
  static_assert(K::kThreads % kWarp == 0 && K::kThreads <= 1024);
  static_assert(sizeof(typename K::Shared) <= kMaxShared);
  run_blocks(grid, K::kThreads, sizeof(typename K::Shared), order,
             [&params](void* shared) { K::run(params, *static_cast<typename K::Shared*>(shared)); });
}

// With the grid that the launch on a GPU has.
template <class K> void launch(const typename K::Params& params, Order order = Order::forward) {
  const Grid grid = K::grid(params);
  if (!grid.fits()) throw Error("a grid that CUDA doesn't launch");
  launch<K>(grid, params, order);
}

}  // namespace attn::simt
