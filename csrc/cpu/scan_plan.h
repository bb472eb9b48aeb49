// How scans are cut into work. A group is one (sequence, head); its tokens are cut into segments. A two-level scan sums
// every segment on its own, adds the sums up, and then goes through the segments with the state before each known: all
// segments of all groups in parallel. Where there are groups enough for the threads, a thread instead takes a group
// from its first segment to its last and saves the first pass. Both do the same arithmetic on the same segments, so
// results do not depend on the choice, which may therefore look at the number of threads.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "attn/parallel.h"
#include "attn/scan.h"
#include "cpu/row_math.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

class SegmentGrid {
 public:
  // `tokens(group)` is the length to cut.
  template <class F> SegmentGrid(int64_t groups, int64_t tokens_a_segment, F&& tokens) : first_(groups + 1) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t n = (tokens(g) + tokens_a_segment - 1) / tokens_a_segment;
      first_[g + 1] = first_[g] + n;
      if (n > longest_) longest_ = n;
    }
  }

  int64_t groups() const { return static_cast<int64_t>(first_.size()) - 1; }
  int64_t total() const { return first_.back(); }
  int64_t segments(int64_t group) const { return first_[group + 1] - first_[group]; }
  // Number of a segment among all.
  int64_t item(int64_t group, int64_t segment) const { return first_[group] + segment; }

  // fn(group, segment) for every segment, in parallel.
  template <class F> void for_segments(F&& fn) const {
    parallel_items(total(), [&](int64_t item, int) {
      int64_t lo = 0, hi = groups();  // first_[lo] <= item < first_[hi]
      while (hi - lo > 1) {
        const int64_t mid = (lo + hi) / 2;
        (first_[mid] <= item ? lo : hi) = mid;
      }
      fn(lo, item - first_[lo]);
    });
  }

  // fn(group) or fn(group, worker) for every group, in parallel on `most` workers at most.
  template <class F> void for_groups(F&& fn, int most = kAnyWorkers) const {
    const auto run = [&](int64_t group, int worker) {
      if constexpr (std::is_invocable_v<F, int64_t, int>) fn(group, worker);
      else fn(group);
    };
    parallel_items(groups(), run, Take::one, most);
  }

  // Whether whole groups keep the threads about as busy as segments would. `extra` is the share of work that going
  // through groups one by one saves.
  bool by_group(double extra) const {
    const int64_t threads = parallel_threads();
    if (threads == 1 || total() == groups()) return true;
    const double rounds = static_cast<double>((groups() + threads - 1) / threads);
    const double even = static_cast<double>(total()) / threads, whole = rounds * total() / (groups() ? groups() : 1);
    return (whole > longest_ ? whole : longest_) <= (1 + extra) * even;
  }

 private:
  std::vector<int64_t> first_;
  int64_t longest_ = 0;
};

// Uninitialised memory of a call.
template <class A> class Workspace {
 public:
  explicit Workspace(int64_t size) : data_(static_cast<A*>(std::aligned_alloc(64, (size * sizeof(A) + 64) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  A* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(A* p) const { std::free(p); }
  };
  std::unique_ptr<A, Free> data_;
};

// A two-level scan of states of `size` elements (whole vectors) over the segments of every group, from the last to the
// first if `reverse`:
//   start(group, state)                     the state before any segment
//   sum(group, segment, added)              what a segment adds to it
//   segment(group, segment, state, added)   the segment's results, given the state before it; fills `added` as sum does
//   end(group, state)                       the state after all
template <class A, class Start, class Sum, class Segment, class End>
inline void two_level_scan(const SegmentGrid& grid, bool reverse, int64_t size, Start&& start, Sum&& sum,
                           Segment&& segment, End&& end) {
  if (grid.by_group(0.3)) {
    grid.for_groups([&](int64_t g) {
      const Workspace<A> states(2 * size);
      A *state = states.get(), *added = state + size;
      start(g, state);
      const int64_t n = grid.segments(g);
      for (int64_t i = 0; i < n; ++i) {
        segment(g, reverse ? n - 1 - i : i, state, added);
        add_row(state, added, size);
      }
      end(g, state);
    });
    return;
  }
  // Slot i of a group: first what the i-th segment in order adds, at i + 1; then the state before that segment, at i.
  const Workspace<A> slots((grid.total() + grid.groups()) * size);
  const auto slot = [&](int64_t g, int64_t i) { return slots.get() + (grid.item(g, i) + g) * size; };
  const auto place = [&](int64_t g, int64_t i) { return reverse ? grid.segments(g) - 1 - i : i; };
  grid.for_segments([&](int64_t g, int64_t i) { sum(g, i, slot(g, place(g, i) + 1)); });
  grid.for_groups([&](int64_t g) {
    start(g, slot(g, 0));
    for (int64_t i = 0; i < grid.segments(g); ++i) add_row(slot(g, i + 1), slot(g, i), size);
    end(g, slot(g, grid.segments(g)));
  });
  grid.for_segments([&](int64_t g, int64_t i) {
    const Workspace<A> added(size);
    segment(g, i, slot(g, place(g, i)), added.get());
  });
}

// Total over the segments of every group: start and sum as above, end(group, state) receives it.
template <class A, class Start, class Sum, class End>
inline void two_level_sum(const SegmentGrid& grid, int64_t size, Start&& start, Sum&& sum, End&& end) {
  if (grid.by_group(0.05)) {
    grid.for_groups([&](int64_t g) {
      const Workspace<A> states(2 * size);
      A *state = states.get(), *added = state + size;
      start(g, state);
      for (int64_t i = 0; i < grid.segments(g); ++i) {
        sum(g, i, added);
        add_row(state, added, size);
      }
      end(g, state);
    });
    return;
  }
  const Workspace<A> slots(grid.total() * size);
  const auto slot = [&](int64_t g, int64_t i) { return slots.get() + grid.item(g, i) * size; };
  grid.for_segments([&](int64_t g, int64_t i) { sum(g, i, slot(g, i)); });
  grid.for_groups([&](int64_t g) {
    const Workspace<A> state(size);
    start(g, state.get());
    for (int64_t i = 0; i < grid.segments(g); ++i) add_row(state.get(), slot(g, i), size);
    end(g, state.get());
  });
}

// A pass over the segments of every group whose results are summed over the group before the next pass begins:
// sum(group, segment, added, worker) fills `size` elements, join(group, total) receives their sum.
template <class Sum, class Join> struct Pass {
  int64_t size;
  Sum sum;
  Join join;
};
template <class Sum, class Join> Pass(int64_t, Sum, Join) -> Pass<Sum, Join>;

// Runs passes one after the other. If `by_group` > 0, all of them on one group before the next group, on so many
// workers at most, and `worker` numbers the one that does so. If it is 0, `worker` is -1: different threads go over a
// group in different passes.
template <class A, class... Passes>
inline void run_passes(const SegmentGrid& grid, int by_group, const Passes&... passes) {
  if (by_group > 0) {
    grid.for_groups(
        [&](int64_t g, int worker) {
          const auto run = [&](const auto& pass) {
            const Workspace<A> sums(2 * pass.size);
            A *total = sums.get(), *added = total + pass.size;
            std::memset(total, 0, pass.size * sizeof(A));
            for (int64_t i = 0; i < grid.segments(g); ++i) {
              pass.sum(g, i, added, worker);
              add_row(total, added, pass.size);
            }
            pass.join(g, total);
          };
          (run(passes), ...);
        },
        by_group);
    return;
  }
  const auto run = [&](const auto& pass) {
    const Workspace<A> slots(grid.total() * pass.size);
    const auto slot = [&](int64_t g, int64_t i) { return slots.get() + grid.item(g, i) * pass.size; };
    grid.for_segments([&](int64_t g, int64_t i) { pass.sum(g, i, slot(g, i), -1); });
    grid.for_groups([&](int64_t g) {
      const Workspace<A> total(pass.size);
      std::memset(total.get(), 0, pass.size * sizeof(A));
      for (int64_t i = 0; i < grid.segments(g); ++i) add_row(total.get(), slot(g, i), pass.size);
      pass.join(g, total.get());
    });
  };
  (run(passes), ...);
}

// One sequence of a batch: entry `batch`, tokens [first, first + count).
struct Stretch { int64_t batch, first, count; };

inline Stretch stretch(const int32_t* cu, int64_t sequence, int64_t tokens) {
  if (!cu) return {sequence, 0, tokens};
  return {0, cu[sequence], cu[sequence + 1] - cu[sequence]};
}

}  // namespace scan
ATTN_NAMESPACE_END
