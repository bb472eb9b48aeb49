#include "attn/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
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

// A range of items, of which its owner takes the first and others the last: both ends in one word.
struct alignas(64) Range {
  std::atomic<uint64_t> ends{0};

  static uint64_t of(uint64_t begin, uint64_t end) { return begin << 32 | end; }

  bool take_first(int64_t& item) {
    uint64_t now = ends.load(std::memory_order_relaxed);
    do {
      if (now >> 32 >= (now & UINT32_MAX)) return false;
      item = static_cast<int64_t>(now >> 32);
    } while (!ends.compare_exchange_weak(now, now + of(1, 0), std::memory_order_relaxed));
    return true;
  }

  // The later half of what is left, for another worker.
  bool take_half(uint64_t& half) {
    uint64_t now = ends.load(std::memory_order_relaxed), begin, middle, end;
    do {
      begin = now >> 32;
      end = now & UINT32_MAX;
      if (begin >= end) return false;
      middle = begin + (end - begin) / 2;
    } while (!ends.compare_exchange_weak(now, of(begin, middle), std::memory_order_relaxed));
    half = of(middle, end);
    return true;
  }
};

// A call of parallel_items. The queue is one counter, or a range for each worker.
struct Job {
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<bool> failed{false};
  std::exception_ptr error;
  int64_t items;
  int workers;
  std::unique_ptr<Range[]> ranges;
  void (*call)(void* context, int64_t item, int worker);
  void* context;

  void cut() {
    ranges = std::make_unique<Range[]>(static_cast<size_t>(workers));
    for (int64_t w = 0; w < workers; ++w) {
      ranges[w].ends =
          Range::of(static_cast<uint64_t>(items * w / workers), static_cast<uint64_t>(items * (w + 1) / workers));
    }
  }

  bool take(int worker, int64_t& item) {
    if (!ranges) {
      item = next.fetch_add(1, std::memory_order_relaxed);
      return item < items;
    }
    if (ranges[worker].take_first(item)) return true;
    for (int i = 1; i < workers; ++i) {
      uint64_t half;
      if (!ranges[(worker + i) % workers].take_half(half)) continue;
      item = static_cast<int64_t>(half >> 32);
      ranges[worker].ends.store(half + Range::of(1, 0), std::memory_order_relaxed);
      return true;
    }
    return false;
  }

  // Exceptions must not leave a thread that is not ours, so each worker ends here.
  void work(int worker) noexcept {
    try {
      for (int64_t item; !failed.load(std::memory_order_relaxed) && take(worker, item);) call(context, item, worker);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
};

}  // namespace

ParallelBackend set_parallel_backend(const ParallelBackend& backend) { return std::exchange(current, backend); }

int parallel_threads() { return current.threads(); }

void set_pool_threads(int threads) { pool().set_size(threads); }

void parallel_items_erased(int64_t items, Take take, int most, void (*call)(void* context, int64_t item, int worker),
                           void* context) {
  if (items <= 0) return;
  const int threads = items == 1 ? 1 : std::min(parallel_threads(), most);
  const int workers = static_cast<int>(std::min<int64_t>(items, threads));
  if (workers <= 1) {
    for (int64_t item = 0; item < items; ++item) call(context, item, 0);
    return;
  }
  Job job;
  job.items = items;
  job.workers = workers;
  job.call = call;
  job.context = context;
  if (take == Take::run && items <= UINT32_MAX) job.cut();
  current.run(workers, [](void* self, int worker) { static_cast<Job*>(self)->work(worker); }, &job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace attn
