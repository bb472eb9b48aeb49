// A selection call as random data, and a search written from the definition, with nothing of the kernels' in it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attn/hip.h"
#include "elements.h"

namespace attn {

struct HipOptions {
  int64_t batch = 1, heads = 2, heads_kv = 2, heads_mask = 2, tq = 100, tk = 100, dim = 16;
  int64_t mask_k = 16, block_q = 32, block_k = 2, stride_q = 2, window = 8;
  bool center = true, causal = true;
};

// Values are small integers: dot products are exact in every type, so ties are frequent and must go the right way.
template <class E> struct HipCase {
  HipOptions o;
  std::vector<typename E::type> q, k;
  std::vector<int32_t> index, count;
  int64_t blocks, length;
  static constexpr int64_t gap = 2;  // rows are not contiguous

  HipCase(const HipOptions& options, uint32_t seed, double spread = 2) : o(options) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0, spread);
    auto fill = [&](std::vector<typename E::type>& x, int64_t rows) {
      x.resize(rows * (o.dim + gap));
      for (auto& value : x) value = E::put(std::round(normal(random)));
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t d = 0; d < gap; ++d) x[r * (o.dim + gap) + o.dim + d] = E::put(std::nan(""));
      }
    };
    fill(q, o.batch * o.heads * o.tq);
    fill(k, o.batch * o.heads_kv * o.tk);
    blocks = (o.tq + o.block_q - 1) / o.block_q;
    length = (o.mask_k + o.block_k - 1) / o.block_k;
    index.assign(o.batch * o.heads_mask * blocks * length, -7);
    count.assign(o.batch * o.heads_mask * blocks, -7);
  }

  SelectParams params() {
    const int64_t row = o.dim + gap;
    return {.dtype = E::dtype,
            .batch = o.batch,
            .heads = o.heads,
            .heads_kv = o.heads_kv,
            .tq = o.tq,
            .tk = o.tk,
            .dim = o.dim,
            .q = {q.data(), o.heads * o.tq * row, o.tq * row, row},
            .k = {k.data(), o.heads_kv * o.tk * row, o.tk * row, row},
            .mask_k = o.mask_k,
            .block_q = o.block_q,
            .block_k = o.block_k,
            .stride_q = o.stride_q,
            .window = o.window,
            .center = o.center,
            .causal = o.causal,
            .heads_mask = o.heads_mask,
            .index = index.data(),
            .count = count.data()};
  }

  double at(const std::vector<typename E::type>& x, int64_t row, int64_t d) const {
    return E::get(x[row * (o.dim + gap) + d]);
  }

  // max over sampled rows, heads and visible keys of a block of the dot product.
  double block_score(int64_t b, int64_t mask_head, const std::vector<int64_t>& rows, int64_t block, int64_t vis) const {
    const int64_t share = o.heads / o.heads_mask, group = o.heads / o.heads_kv;
    double best = -std::numeric_limits<double>::infinity();
    for (int64_t h = mask_head * share; h < (mask_head + 1) * share; ++h) {
      for (int64_t i : rows) {
        for (int64_t j = block * o.block_k; j < std::min((block + 1) * o.block_k, vis); ++j) {
          double dot = 0;
          for (int64_t d = 0; d < o.dim; ++d) {
            dot += at(q, (b * o.heads + h) * o.tq + i, d) * at(k, (b * o.heads_kv + h / group) * o.tk + j, d);
          }
          if (dot > best) best = dot;  // false for NaN
        }
      }
    }
    return best;
  }

  std::vector<int32_t> expected(int64_t b, int64_t mask_head, int64_t block_row) const {
    const int64_t first = block_row * o.block_q, end = std::min(first + o.block_q, o.tq);
    const int64_t vis = o.causal ? std::clamp<int64_t>(end - 1 + o.tk - o.tq + 1, 0, o.tk) : o.tk;
    const int64_t candidates = std::max<int64_t>(0, vis - o.window), n = (candidates + o.block_k - 1) / o.block_k;
    std::vector<int32_t> chosen;
    if (candidates <= o.mask_k) {
      for (int64_t i = 0; i < n; ++i) chosen.push_back(static_cast<int32_t>(i * o.block_k));
      return chosen;
    }
    std::vector<int64_t> rows;
    for (int64_t i = first + o.stride_q - 1; i < end; i += o.stride_q) rows.push_back(i);
    if (rows.empty()) rows.push_back(end - 1);
    struct Node {
      int64_t start, size;
      double score;
    };
    std::vector<Node> nodes;
    for (int64_t i = 0; i < length; ++i) {
      nodes.push_back({i * n / length, (i + 1) * n / length - i * n / length, 0});
    }
    for (int64_t width = length; width < n; width *= 2) {
      std::vector<Node> halves;
      for (const Node& node : nodes) {
        const int64_t left = node.size / 2;
        for (Node half : {Node{node.start, left, 0}, Node{node.start + left, node.size - left, 0}}) {
          if (half.size == 0) continue;
          half.score = block_score(b, mask_head, rows, o.center ? half.start + half.size / 2 : half.start, vis);
          halves.push_back(half);
        }
      }
      std::sort(halves.begin(), halves.end(), [](const Node& x, const Node& y) {
        return x.score != y.score ? x.score > y.score : x.start < y.start;
      });
      halves.resize(length);
      nodes = halves;
    }
    for (const Node& node : nodes) chosen.push_back(static_cast<int32_t>(node.start * o.block_k));
    std::sort(chosen.begin(), chosen.end());
    return chosen;
  }

  void check() const {
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t h = 0; h < o.heads_mask; ++h) {
        for (int64_t i = 0; i < blocks; ++i) {
          std::vector<int32_t> want = expected(b, h, i);
          const int64_t at = (b * o.heads_mask + h) * blocks + i;
          ASSERT_EQ(count[at], static_cast<int32_t>(want.size())) << "list " << b << " " << h << " " << i;
          want.resize(length, std::numeric_limits<int32_t>::max());
          const std::vector<int32_t> got(index.begin() + at * length, index.begin() + (at + 1) * length);
          ASSERT_EQ(got, want) << "list " << b << " " << h << " " << i;
        }
      }
    }
  }
};

}  // namespace attn
