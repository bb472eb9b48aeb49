// Per-graph selection of nodes on the device (attn/pool.h: CPU and GPU agree in every index), for every architecture.
// Nothing goes through the host: how many are kept is a result. Graphs of any size: one of up to 2048 nodes is sorted
// in shared memory, a larger one by all blocks side by side, each node looking up its place in the run beside its own.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/grid.h"
#include "cuda/seam.h"
#include "cuda/topk_parts.h"

namespace attn::cuda {

constexpr int kTopkThreads = 256, kTopkWarps = kTopkThreads / 32;

// What is kept with a minimum score: scores above this one. For all threads of a block; NaN is no maximum.
template <class T>
ATTN_DEVICE double node_threshold(const TopkPass& p, ScanChunks::Range r, float (&tops)[kTopkWarps]) {
  const T* score = static_cast<const T*>(p.nodes.score);
  float top = -INFINITY;
  for (int64_t i = r.begin + seam::thread(); i < r.end; i += kTopkThreads)
    top = std::fmax(top, seam::to_float(score[i]));
  for (int step = 16; step > 0; step /= 2) top = std::fmax(top, seam::shuffle_xor(top, step));
  if (seam::lane() == 0) tops[seam::warp()] = top;
  seam::sync_block();
  for (int i = 0; i < kTopkWarps; ++i) top = std::fmax(top, tops[i]);
  const double below = static_cast<double>(top) - 1e-7;
  return below < p.nodes.min_score ? below : p.nodes.min_score;
}

// new_cu[g + 1] = nodes kept of graph g: a thread takes a graph or, with a minimum score, a block.
template <class T> struct TopkCounts {
  static constexpr int kThreads = kTopkThreads;
  using Params = TopkPass;
  struct Shared {
    float top[kTopkWarps];
    int32_t count[kTopkWarps];
  };
  static Grid grid(const Params& p) {
    const int64_t graphs = p.nodes.graphs;
    return {p.nodes.by_score ? graphs : (graphs + kThreads - 1) / kThreads};
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    if (!p.nodes.by_score) {
      const int64_t g = static_cast<int64_t>(seam::block_x()) * kThreads + seam::thread();
      if (g >= p.nodes.graphs) return;
      const ScanChunks::Range r = p.runs.sequence(g);
      const int64_t n = r.end - r.begin, most = p.nodes.k < n ? p.nodes.k : n;
      p.nodes.new_cu[g + 1] = static_cast<int32_t>(p.nodes.ratio > 0 ? nodes_kept(p.nodes.ratio, n) : most);
      return;
    }
    const int64_t g = seam::block_x();
    const ScanChunks::Range r = p.runs.sequence(g);
    const double threshold = node_threshold<T>(p, r, shared.top);
    const T* score = static_cast<const T*>(p.nodes.score);
    int32_t n = 0;
    for (int64_t i = r.begin + seam::thread(); i < r.end; i += kThreads)
      n += static_cast<double>(seam::to_float(score[i])) > threshold;
    n = seam::reduce_add(n);
    if (seam::lane() == 0) shared.count[seam::warp()] = n;
    seam::sync_block();
    if (seam::thread() != 0) return;
    n = 0;
    for (int i = 0; i < kTopkWarps; ++i) n += shared.count[i];
    p.nodes.new_cu[g + 1] = n;
  }
};

// Counts become bounds: one block adds them up, 256 at a time.
struct TopkBounds {
  static constexpr int kThreads = kTopkThreads;
  using Params = TopkPass;
  struct Shared { int32_t sum[2][kTopkWarps]; };
  static Grid grid(const Params&) { return {1}; }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    uint32_t before = 0;  // bounds that nobody looked at may add up to anything
    if (seam::thread() == 0) p.nodes.new_cu[0] = 0;
    for (int64_t first = 0, turn = 0; first < p.nodes.graphs; first += kThreads, turn ^= 1) {
      const int64_t g = first + seam::thread();
      const uint32_t mine = g < p.nodes.graphs ? static_cast<uint32_t>(p.nodes.new_cu[g + 1]) : 0;
      uint32_t sum = mine;
      for (int step = 1; step < 32; step *= 2) {
        const uint32_t other = seam::shuffle(sum, seam::lane() >= step ? seam::lane() - step : seam::lane());
        if (seam::lane() >= step) sum += other;
      }
      if (seam::lane() == 31) shared.sum[turn][seam::warp()] = static_cast<int32_t>(sum);
      seam::sync_block();
      uint32_t all = 0;
      for (int i = 0; i < kTopkWarps; ++i) {
        if (i == seam::warp()) sum += all;
        all += static_cast<uint32_t>(shared.sum[turn][i]);
      }
      if (g < p.nodes.graphs) p.nodes.new_cu[g + 1] = static_cast<int32_t>(before + sum);
      before += all;
    }
  }
};

// The run of a graph that a block takes: nodes [first, last) of it.
struct TopkRun {
  int64_t graph, first, last;
  ScanChunks::Range nodes;  // of the graph

  static Grid grid(const TopkPass& p) { return {p.runs.slots()}; }
  // False if there is none.
  ATTN_DEVICE bool open(const TopkPass& p) {
    const ScanChunks::Place place = p.runs.find(seam::block_x());
    if (place.chunk < 0 || place.chunk >= p.runs.chunks(place.sequence)) return false;
    graph = place.sequence;
    nodes = p.runs.sequence(graph);
    first = place.chunk * kSortRun;
    const int64_t n = nodes.end - nodes.begin;
    last = first + kSortRun < n ? first + kSortRun : n;
    return true;
  }
};

// Sorts each run in shared memory: a bitonic network.
template <class T> struct TopkSort {
  static constexpr int kThreads = kTopkThreads;
  using Params = TopkPass;
  struct Shared { uint64_t key[kSortRun]; };
  static Grid grid(const Params& p) { return TopkRun::grid(p); }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    TopkRun r;
    if (!r.open(p)) return;
    const int n = static_cast<int>(r.last - r.first);
    int size = 2;
    while (size < n) size *= 2;
    for (int i = seam::thread(); i < size; i += kThreads) {
      uint64_t key = 0;  // comes last
      if (i < n) {
        const float score = seam::to_float(static_cast<const T*>(p.nodes.score)[r.nodes.begin + r.first + i]);
        uint32_t bits;
        memcpy(&bits, &score, 4);
        key =
            static_cast<uint64_t>(score_order(score, bits)) << 32 | (0xffffffffu - static_cast<uint32_t>(r.first + i));
      }
      shared.key[i] = key;
    }
    seam::sync_block();
    for (int half = 2; half <= size; half *= 2) {
      for (int step = half / 2; step > 0; step /= 2) {
        for (int i = seam::thread(); i < size / 2; i += kThreads) {
          const int a = i / step * 2 * step + i % step, b = a + step;
          const uint64_t x = shared.key[a], y = shared.key[b];
          if ((x < y) == ((a & half) == 0)) shared.key[a] = y, shared.key[b] = x;
        }
        seam::sync_block();
      }
    }
    for (int i = seam::thread(); i < n; i += kThreads) p.from[r.nodes.begin + r.first + i] = shared.key[i];
  }
};

// Merges pairs of runs of `length`: a key's place is its own in its run and how many of the other run come before it.
struct TopkMerge {
  static constexpr int kThreads = kTopkThreads;
  using Params = TopkPass;
  struct Shared {};
  static Grid grid(const Params& p) { return TopkRun::grid(p); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    TopkRun r;
    if (!r.open(p)) return;
    const int64_t n = r.nodes.end - r.nodes.begin, mine = r.first / p.length, other = mine ^ 1;
    const uint64_t* from = p.from + r.nodes.begin;
    const int64_t begin = other * p.length < n ? other * p.length : n;
    const int64_t end = begin + p.length < n ? begin + p.length : n;
    for (int64_t i = r.first + seam::thread(); i < r.last; i += kThreads) {
      const uint64_t key = from[i];
      int64_t low = begin, high = end;  // the first of the other run that comes later
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (from[middle] > key) low = middle + 1;
        else high = middle;
      }
      p.to[r.nodes.begin + mine / 2 * 2 * p.length + (i - mine * p.length) + (low - begin)] = key;
    }
  }
};

// Where the n-th kept node of a graph goes; null past the end, where wrong bounds may lead.
ATTN_DEVICE int64_t* kept_at(const TopkPass& p, int64_t graph, int64_t n) {
  const int64_t at = p.nodes.new_cu[graph] + n;
  return at >= 0 && at < p.nodes.nodes ? p.nodes.perm + at : nullptr;
}

// The best nodes of sorted graphs.
struct TopkWrite {
  static constexpr int kThreads = kTopkThreads;
  using Params = TopkPass;
  struct Shared {};
  static Grid grid(const Params& p) { return TopkRun::grid(p); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    TopkRun r;
    if (!r.open(p)) return;
    const int64_t kept = p.nodes.new_cu[r.graph + 1] - p.nodes.new_cu[r.graph];
    for (int64_t i = r.first + seam::thread(); i < r.last && i < kept; i += kThreads) {
      const uint32_t index = 0xffffffffu - static_cast<uint32_t>(p.from[r.nodes.begin + i]);
      if (int64_t* to = kept_at(p, r.graph, i)) *to = r.nodes.begin + index;
    }
  }
};

// Nodes above the threshold, in ascending order: a block takes a graph.
template <class T> struct TopkAbove {
  static constexpr int kThreads = kTopkThreads;
  using Params = TopkPass;
  struct Shared {
    float top[kTopkWarps];
    int32_t count[2][kTopkWarps];
  };
  static Grid grid(const Params& p) { return {p.nodes.graphs}; }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const int64_t g = seam::block_x();
    const ScanChunks::Range r = p.runs.sequence(g);
    const double threshold = node_threshold<T>(p, r, shared.top);
    int64_t before = 0;
    for (int64_t first = r.begin, turn = 0; first < r.end; first += kThreads, turn ^= 1) {
      const int64_t i = first + seam::thread();
      const bool keep =
          i<r.end&& static_cast<double>(seam::to_float(static_cast<const T*>(p.nodes.score)[i]))> threshold;
      const uint32_t all = seam::ballot(keep);
      if (seam::lane() == 0) shared.count[turn][seam::warp()] = static_cast<int32_t>(seam::popcount(all));
      seam::sync_block();
      int64_t at = before + seam::popcount(all & ((1u << seam::lane()) - 1));
      for (int w = 0; w < kTopkWarps; ++w) {
        if (w < seam::warp()) at += shared.count[turn][w];
        before += shared.count[turn][w];
      }
      int64_t* to = keep ? kept_at(p, g, at) : nullptr;
      if (to) *to = i;
    }
  }
};

// -1 past the last kept node.
struct TopkFill {
  static constexpr int kThreads = kTopkThreads;
  using Params = TopkPass;
  struct Shared {};
  static Grid grid(const Params& p) { return {(p.nodes.nodes + kThreads - 1) / kThreads}; }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const int64_t i = static_cast<int64_t>(seam::block_x()) * kThreads + seam::thread();
    if (i < p.nodes.nodes && i >= p.nodes.new_cu[p.nodes.graphs]) p.nodes.perm[i] = -1;
  }
};

// The launches of a call, on a GPU and under test alike.
template <class T, class Launch> void run_topk_nodes(TopkPass p, Launch&& launch) {
  launch(KernelOf<TopkCounts<T>>{}, p);
  launch(KernelOf<TopkBounds>{}, p);
  launch(KernelOf<TopkFill>{}, p);
  if (p.nodes.by_score) return launch(KernelOf<TopkAbove<T>>{}, p);
  launch(KernelOf<TopkSort<T>>{}, p);
  for (; p.length < p.nodes.nodes; p.length *= 2) {  // nobody knows how large the largest graph is
    launch(KernelOf<TopkMerge>{}, p);
    uint64_t* merged = p.to;
    p.to = p.from;
    p.from = merged;
  }
  launch(KernelOf<TopkWrite>{}, p);
}

}  // namespace attn::cuda
