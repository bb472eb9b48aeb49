// Per-graph selection of nodes (attn/pool.h). Top-k keeps the highest scores in descending order, equal ones by lower
// index; a minimum score keeps every node above min(max - 1e-7, min_score), in ascending order. NaN ranks highest, as
// in torch.sort.
#pragma once

#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

template <class T> struct NodeScores {
  const T* score;

  // Does node a come before node b?
  bool before(int64_t a, int64_t b) const {
    const double x = to_float(score[a]), y = to_float(score[b]);
    if (x != x || y != y) return x != x && (y == y || a < b);
    return x > y || (x == y && a < b);
  }

  // Restores the heap below `at`: every node comes after its children, so the one to be dropped next is on top.
  void sift(int64_t* heap, int64_t n, int64_t at) const {
    for (;;) {
      int64_t last = at;
      for (int64_t child = 2 * at + 1; child <= 2 * at + 2 && child < n; ++child) {
        if (before(heap[last], heap[child])) last = child;
      }
      if (last == at) return;
      const int64_t node = heap[at];
      heap[at] = heap[last];
      heap[last] = node;
      at = last;
    }
  }

  // The first k nodes of [begin, end) in order, into `kept`.
  void top(int64_t begin, int64_t end, int64_t k, int64_t* kept) const {
    if (k == 0) return;
    for (int64_t i = 0; i < k; ++i) kept[i] = begin + i;
    for (int64_t i = k / 2; i-- > 0;) sift(kept, k, i);
    for (int64_t node = begin + k; node < end; ++node) {
      if (!before(node, kept[0])) continue;
      kept[0] = node;
      sift(kept, k, 0);
    }
    for (int64_t n = k; n > 1;) {
      const int64_t node = kept[0];
      kept[0] = kept[--n];
      kept[n] = node;
      sift(kept, n, 0);
    }
  }

  double threshold(int64_t begin, int64_t end, double min_score) const {
    double top = -kInf<double>;
    for (int64_t i = begin; i < end; ++i) {
      const double x = to_float(score[i]);
      if (x > top) top = x;
    }
    return top - 1e-7 < min_score ? top - 1e-7 : min_score;
  }
};

template <class T> inline void topk(const TopkNodesParams& p) {
  const NodeScores<T> nodes{static_cast<const T*>(p.score)};
  constexpr int64_t kGraphs = 64;  // a work item
  // How many of each graph.
  parallel_items((p.graphs + kGraphs - 1) / kGraphs, [&](int64_t item, int) {
    for (int64_t g = item * kGraphs; g < p.graphs && g < (item + 1) * kGraphs; ++g) {
      const int64_t begin = p.cu[g], end = p.cu[g + 1], n = end - begin;
      int64_t kept = 0;
      if (p.by_score) {
        const double threshold = nodes.threshold(begin, end, p.min_score);
        for (int64_t i = begin; i < end; ++i) kept += static_cast<double>(to_float(nodes.score[i])) > threshold;
      } else {
        kept = p.ratio > 0 ? nodes_kept(p.ratio, n) : p.k < n ? p.k : n;
      }
      p.new_cu[g + 1] = static_cast<int32_t>(kept);
    }
  });
  p.new_cu[0] = 0;
  for (int64_t g = 0; g < p.graphs; ++g) p.new_cu[g + 1] += p.new_cu[g];
  parallel_items((p.graphs + kGraphs - 1) / kGraphs, [&](int64_t item, int) {
    for (int64_t g = item * kGraphs; g < p.graphs && g < (item + 1) * kGraphs; ++g) {
      const int64_t begin = p.cu[g], end = p.cu[g + 1];
      int64_t* kept = p.perm + p.new_cu[g];
      if (!p.by_score) {
        nodes.top(begin, end, p.new_cu[g + 1] - p.new_cu[g], kept);
        continue;
      }
      const double threshold = nodes.threshold(begin, end, p.min_score);
      for (int64_t i = begin; i < end; ++i) {
        if (static_cast<double>(to_float(nodes.score[i])) > threshold) *kept++ = i;
      }
    }
  });
  for (int64_t i = p.new_cu[p.graphs]; i < p.nodes; ++i) p.perm[i] = -1;
}

}  // namespace pool

inline void topk_nodes(const TopkNodesParams& p){ATTN_POOL_DISPATCH(p.dtype, pool::topk, p)}

ATTN_NAMESPACE_END
