#include "attn/parallel.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace attn {
namespace {

using Body = void (*)(void* context, int worker);

// Threads that sleep between calls. One job at a time: concurrent callers queue on `callers_`.
class Pool {
 public:
  ~Pool() { resize(1); }

  int size() {
    std::lock_guard<std::mutex> caller(callers_);
    return size_locked();
  }

  void set_size(int threads) {
    std::lock_guard<std::mutex> caller(callers_);
    wanted_ = threads;
    resize(size_locked());
  }

  void run(int workers, Body body, void* context) {
    std::lock_guard<std::mutex> caller(callers_);
    resize(size_locked());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      workers_ = workers;
      pending_ = static_cast<int>(threads_.size());
      ++generation_;
    }
    wake_.notify_all();
    // The caller is worker 0 and stands in for workers that the pool has no thread for.
    body(context, 0);
    for (int worker = static_cast<int>(threads_.size()) + 1; worker < workers; ++worker) body(context, worker);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  int size_locked() const {
    if (wanted_ > 0) return wanted_;
    const unsigned n = std::thread::hardware_concurrency();
    return n > 0 ? static_cast<int>(n) : 1;
  }

  void resize(int size) {
    if (static_cast<int>(threads_.size()) == size - 1) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    stop_ = false;
    for (int worker = 1; worker < size; ++worker) {
      threads_.emplace_back([this, worker, seen = generation_] { serve(worker, seen); });
    }
  }

  void serve(int worker, uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      const Body body = body_;
      void* const context = context_;
      const bool wanted = worker < workers_;
      lock.unlock();
      if (wanted) body(context, worker);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex callers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  int wanted_ = 0;
  Body body_ = nullptr;
  void* context_ = nullptr;
  int workers_ = 0;
  int pending_ = 0;
  uint64_t generation_ = 0;
  bool stop_ = false;
};

Pool& pool() {
  static Pool instance;
  return instance;
}

int pool_threads() { return pool().size(); }

void pool_run(int workers, Body body, void* context) { pool().run(workers, body, context); }

ParallelBackend current{pool_threads, pool_run};

// A call of parallel_items: the queue is one counter.
struct Job {
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<bool> failed{false};
  std::exception_ptr error;
  int64_t items;
  int workers;
  Take take;
  void (*call)(void* context, int64_t item, int worker);
  void* context;

  // Of `left` items: half of a worker's share, so that the last runs are short and workers finish together.
  int64_t share(int64_t left) const {
    const int64_t run = take == Take::run ? left / (2 * workers) : 1;
    return run > 1 ? run : 1;
  }

  // Exceptions must not leave a thread that is not ours, so each worker ends here.
  void work(int worker) noexcept {
    try {
      while (!failed.load(std::memory_order_relaxed)) {
        int64_t item = next.load(std::memory_order_relaxed), end;
        do {
          if (item >= items) return;
          end = item + share(items - item);
        } while (!next.compare_exchange_weak(item, end, std::memory_order_relaxed));
        for (; item < end && !failed.load(std::memory_order_relaxed); ++item) call(context, item, worker);
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
};

}  // namespace

ParallelBackend set_parallel_backend(const ParallelBackend& backend) { return std::exchange(current, backend); }

int parallel_threads() { return current.threads(); }

void set_pool_threads(int threads) { pool().set_size(threads); }

void parallel_items_erased(int64_t items, Take take, void (*call)(void* context, int64_t item, int worker),
                           void* context) {
  if (items <= 0) return;
  const int64_t threads = items == 1 ? 1 : parallel_threads();
  const int workers = static_cast<int>(items < threads ? items : threads);
  if (workers <= 1) {
    for (int64_t item = 0; item < items; ++item) call(context, item, 0);
    return;
  }
  Job job;
  job.items = items;
  job.workers = workers;
  job.take = take;
  job.call = call;
  job.context = context;
  current.run(workers, [](void* self, int worker) { static_cast<Job*>(self)->work(worker); }, &job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace attn
