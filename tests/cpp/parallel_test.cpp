#include "attn/parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

namespace attn {
namespace {

class Parallel : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_pool_threads(GetParam()); }
  void TearDown() override { set_pool_threads(0); }
};

TEST_P(Parallel, EveryItemOnce) {
  for (int64_t items : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> seen(items);
    parallel_items(items, [&](int64_t item, int) { ++seen[item]; });
    parallel_runs(items, [&](int64_t item, int) { ++seen[item]; });
    for (int64_t i = 0; i < items; ++i) EXPECT_EQ(seen[i], 2) << i << " of " << items;
  }
}

// Two workers wait for each other at their first items: each starts its own half.
TEST(ParallelRuns, EveryWorkerHasItsOwn) {
  set_pool_threads(2);
  std::vector<int64_t> first(2, -1);
  std::atomic<int> started{0};
  parallel_runs(100, [&](int64_t item, int worker) {
    if (first[worker] >= 0) return;
    first[worker] = item;
    ++started;
    while (started < 2) std::this_thread::yield();
  });
  set_pool_threads(0);
  std::sort(first.begin(), first.end());
  EXPECT_EQ(first, (std::vector<int64_t>{0, 50}));
}

// The first worker stays at its first item until all others are done: the second one takes over the first one's rest.
TEST(ParallelRuns, AreSharedWhenAWorkerIsDone) {
  set_pool_threads(2);
  std::atomic<int64_t> by_second{0};
  std::atomic<bool> begun{false};
  parallel_runs(101, [&](int64_t, int worker) {
    if (worker == 0) {
      begun = true;
      while (by_second < 100) std::this_thread::yield();
    } else {
      while (!begun) std::this_thread::yield();
      ++by_second;
    }
  });
  set_pool_threads(0);
  EXPECT_EQ(by_second, 100);
}

// Memory was made for two workers; then someone asked for five threads.
TEST(ParallelRuns, WorkersThatThereIsMemoryForOnly) {
  set_pool_threads(5);
  for (const Take take : {Take::one, Take::run}) {
    std::atomic<int64_t> ran{0};
    std::atomic<int> greatest{0};
    parallel_items(
        100,
        [&](int64_t, int worker) {
          ++ran;
          for (int seen = greatest; seen < worker && !greatest.compare_exchange_weak(seen, worker);) {}
          std::this_thread::yield();
        },
        take, 2);
    EXPECT_EQ(ran, 100);
    EXPECT_LT(greatest, 2);
  }
  set_pool_threads(0);
}

TEST_P(Parallel, AnExceptionEndsItsRun) {
  std::atomic<int64_t> ran{0};
  EXPECT_THROW(parallel_runs(int64_t{1} << 20,
                             [&](int64_t item, int) {
                               ++ran;
                               if (item == 5) throw std::runtime_error("item 5");
                             }),
               std::runtime_error);
  EXPECT_LT(ran, int64_t{1} << 20);
}

// A scratch area per worker is safe only if no two running calls share an index.
TEST_P(Parallel, WorkersDoNotShareAnIndex) {
  const int threads = parallel_threads();
  ASSERT_EQ(threads, GetParam());
  std::vector<std::atomic<int>> inside(threads);
  std::atomic<int> clashes{0};
  parallel_items(500, [&](int64_t, int worker) {
    if (worker < 0 || worker >= threads || inside[worker]++ != 0) {
      ++clashes;
      return;
    }
    std::this_thread::yield();
    --inside[worker];
  });
  EXPECT_EQ(clashes, 0);
}

TEST_P(Parallel, FirstExceptionStopsTheQueueAndIsRethrown) {
  std::atomic<int64_t> ran{0};
  const int64_t items = 1 << 20;
  try {
    parallel_items(items, [&](int64_t item, int) {
      ++ran;
      if (item == 5) throw std::runtime_error("item 5");
    });
    FAIL() << "no exception";
  } catch (const std::runtime_error& error) { EXPECT_STREQ(error.what(), "item 5"); }
  EXPECT_LT(ran, items);
  // The pool still works.
  std::atomic<int> after{0};
  parallel_items(100, [&](int64_t, int) { ++after; });
  EXPECT_EQ(after, 100);
}

TEST_P(Parallel, ConcurrentCallersAreServed) {
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 20; ++round) parallel_items(50, [&](int64_t item, int) { sum += item; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 20 * 50 * 49 / 2);
}

INSTANTIATE_TEST_SUITE_P(Threads, Parallel, testing::Values(1, 2, 5));

// PyTorch runs all workers on one thread when it is already inside a parallel region.
TEST(ParallelBackend, WorkersMayRunOneAfterAnother) {
  const ParallelBackend before = set_parallel_backend({[] { return 3; },
                                                       [](int workers, void (*body)(void*, int), void* context) {
                                                         for (int w = 0; w < workers; ++w) body(context, w);
                                                       }});
  int64_t sum = 0;
  parallel_items(10, [&](int64_t item, int) { sum += item; });
  set_parallel_backend(before);
  EXPECT_EQ(sum, 45);
}

}  // namespace
}  // namespace attn
