// A selection of nodes and what it has to be, by a stable sort.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "attn/pool.h"
#include "elements.h"

namespace attn {

template <class E> struct TopkNodesCase {
  std::vector<typename E::type> score;
  std::vector<int32_t> cu, new_cu;
  std::vector<int64_t> perm;
  double ratio = 0, min_score = 0;
  int64_t k = 0;
  bool by_score = false;

  // Scores with many ties, infinities, zeros of both signs and, among them, NaN.
  TopkNodesCase(const std::vector<int64_t>& sizes, int64_t spare, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    cu.push_back(0);
    for (int64_t n : sizes) cu.push_back(cu.back() + static_cast<int32_t>(n));
    score.resize(cu.back() + spare);
    for (auto& x : score) {
      const double value = normal(random);
      x = E::put(random() % 2 ? std::round(value) : value);
      if (random() % 40 == 0) x = E::put(random() % 2 ? INFINITY : -INFINITY);
      if (random() % 40 == 0) x = E::put(std::nan(""));
    }
    perm.resize(score.size(), -7);
    new_cu.resize(cu.size(), -7);
  }

  TopkNodesParams params() {
    return {E::dtype,
            static_cast<int64_t>(score.size()),
            static_cast<int64_t>(cu.size()) - 1,
            score.data(),
            cu.data(),
            ratio,
            k,
            by_score,
            min_score,
            perm.data(),
            new_cu.data()};
  }

  void check() const {
    std::vector<int64_t> expected;
    std::vector<int32_t> bounds = {0};
    for (size_t g = 0; g + 1 < cu.size(); ++g) {
      std::vector<int64_t> nodes(cu[g + 1] - cu[g]);
      std::iota(nodes.begin(), nodes.end(), cu[g]);
      const auto value = [&](int64_t i) { return E::get(score[i]); };
      if (by_score) {
        double top = -INFINITY;
        for (int64_t i : nodes) top = value(i) > top ? value(i) : top;
        std::erase_if(nodes, [&](int64_t i) { return !(value(i) > std::min(top - 1e-7, min_score)); });
      } else {
        std::stable_sort(nodes.begin(), nodes.end(), [&](int64_t a, int64_t b) {
          if (std::isnan(value(a)) || std::isnan(value(b))) return std::isnan(value(a)) && !std::isnan(value(b));
          return value(a) > value(b);
        });
        const int64_t n = static_cast<int64_t>(nodes.size());
        nodes.resize(ratio > 0 ? static_cast<int64_t>(std::ceil(ratio * static_cast<double>(n))) : std::min(k, n));
      }
      expected.insert(expected.end(), nodes.begin(), nodes.end());
      bounds.push_back(static_cast<int32_t>(expected.size()));
    }
    expected.resize(score.size(), -1);
    ASSERT_EQ(new_cu, bounds);
    ASSERT_EQ(perm, expected);
  }
};

// Calls run(case) for every rule (ratios that doubles hold) and these graphs.
template <class E, class Run> void for_topk_rules(const std::vector<int64_t>& sizes, int64_t spare, Run&& run) {
  for (int rule = 0; rule < 9; ++rule) {
    TopkNodesCase<E> c(sizes, spare, static_cast<uint32_t>(rule) + 1);
    if (rule < 3) c.ratio = rule == 0 ? 1 : rule == 1 ? 0.5 : 0.125;
    else if (rule < 6) c.k = rule == 3 ? 0 : rule == 4 ? 3 : 100000;
    else c.by_score = true, c.min_score = rule == 6 ? 0.4 : rule == 7 ? 99 : -99;
    SCOPED_TRACE(testing::Message() << "rule " << rule);
    run(c);
    c.check();
  }
}

}  // namespace attn
