// Work sharing for CPU kernels: a dynamic queue of independent items over a pluggable thread backend. Inside PyTorch
// the backend is PyTorch's own (csrc/ops/parallel.cpp); elsewhere it is a pool of std::thread.
#pragma once

#include <type_traits>

#include "attn/types.h"

namespace attn {

// Where threads come from.
struct ParallelBackend {
  // Most workers `run` is asked for.
  int (*threads)();
  // Calls body(context, worker) once for every worker in [0, workers) and returns when all are done. Calls may run one
  // after another on one thread. `body` never throws.
  void (*run)(int workers, void (*body)(void* context, int worker), void* context);
};

// Replaces the backend and returns the one before. Not to be called while work is running.
ParallelBackend set_parallel_backend(const ParallelBackend& backend);

// Number of workers that parallel_items uses now. Another thread may change it at any time: who makes room for so many
// workers says so to parallel_items.
int parallel_threads();

// Size of the std::thread pool behind the default backend; 0 = the number of hardware threads.
void set_pool_threads(int threads);

// How many items a worker takes from the queue at a time.
enum class Take {
  one,  // items may differ in cost
  run,  // consecutive items: the worker's own part of them, then what others have left
};

constexpr int kAnyWorkers = INT32_MAX;

// parallel_items and parallel_runs with the types erased.
void parallel_items_erased(int64_t items, Take take, int most, void (*call)(void* context, int64_t item, int worker),
                           void* context);

}  // namespace attn

ATTN_NAMESPACE_BEGIN

// Calls fn(item, worker) once for every item in [0, items), in no particular order, items being taken one at a time as
// workers become free. `worker` is in [0, min(items, most)) and no two calls that run at the same time share it; with
// memory for each of `most` workers, that is what they may index. The first exception thrown by fn stops the queue and
// is rethrown here.
template <class F>
inline void parallel_items(int64_t items, F&& fn, Take take = Take::one, int most = kAnyWorkers) {
  using Fn = std::remove_reference_t<F>;
  parallel_items_erased(
      items, take, most, [](void* context, int64_t item, int worker) { (*static_cast<Fn*>(context))(item, worker); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

// For items of about equal cost that read memory one after the other: each worker has a part of its own, which it goes
// through in order, and takes half of another's rest when it is done. What the hardware fetches ahead of one item is
// then of use to the next; and a worker meets the rows it met in the op before, as PyTorch's own loops are cut in the
// same way, so that they may still be in a cache that its core doesn't share with all others.
template <class F>
inline void parallel_runs(int64_t items, F&& fn) {
  parallel_items(items, static_cast<F&&>(fn), Take::run);
}

ATTN_NAMESPACE_END
