// hip_select against a search written from the definition, with nothing of the kernel's in it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attn/cpu.h"
#include "attn/hip.h"
#include "elements.h"

namespace attn {
namespace {

struct Options {
  int64_t batch = 1, heads = 2, heads_kv = 2, heads_mask = 2, tq = 100, tk = 100, dim = 16;
  int64_t mask_k = 16, block_q = 32, block_k = 2, stride_q = 2, window = 8;
  bool center = true, causal = true;
};

// Values are small integers: dot products are exact in every type, so ties are frequent and must go the right way.
template <class E> struct Problem {
  Options o;
  std::vector<typename E::type> q, k;
  std::vector<int32_t> index, count;
  int64_t blocks, length;
  static constexpr int64_t gap = 2;  // rows are not contiguous

  Problem(const Options& options, uint32_t seed, double spread = 2) : o(options) {
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

  void run() {
    const int64_t row = o.dim + gap;
    cpu::hip_select({.dtype = E::dtype,
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
                     .count = count.data()});
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

  void run_and_check() {
    run();
    check();
  }
};

template <class E> class HipSelect : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(HipSelect, Elements);

TYPED_TEST(HipSelect, MatchesTheDefinition) {
  std::mt19937 random(11);
  auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  for (int i = 0; i < 60; ++i) {
    Options o;
    o.batch = pick({1, 2});
    o.heads_kv = pick({1, 2, 3});
    o.heads = o.heads_kv * pick({1, 2, 4});
    o.heads_mask = pick({o.heads, o.heads_kv, 1});
    o.tq = pick({1, 2, 31, 64, 100});
    o.tk = pick({1, 40, 64, 129, 300});
    o.dim = pick({1, 3, 8, 17, 32});
    o.mask_k = pick({1, 5, 16, 40});
    o.block_q = pick({1, 16, 32, 48});
    o.block_k = pick({1, 2, 3, 16});
    o.stride_q = pick({1, 2, 5, 64});
    o.window = pick({0, 1, 8, 30});
    o.center = random() % 2;
    o.causal = random() % 2;
    SCOPED_TRACE(testing::Message() << "case " << i << ": H " << o.heads << "/" << o.heads_kv << "/" << o.heads_mask
                                    << " T " << o.tq << "x" << o.tk << " D " << o.dim << " mask_k " << o.mask_k
                                    << " blocks " << o.block_q << "x" << o.block_k << " stride " << o.stride_q
                                    << " window " << o.window << " center " << o.center << " causal " << o.causal);
    Problem<TypeParam>(o, 100 + i).run_and_check();
  }
}

TYPED_TEST(HipSelect, ManyTilesOfKeys) {
  Options o;
  o.tq = 32;
  o.tk = 1500;
  o.mask_k = 200;
  o.block_k = 1;
  Problem<TypeParam>(o, 1).run_and_check();
  o.block_k = 64;  // one block is most of a tile
  o.mask_k = 300;
  Problem<TypeParam>(o, 2).run_and_check();
  o.block_k = 150;  // and more than one
  Problem<TypeParam>(o, 3).run_and_check();
}

TYPED_TEST(HipSelect, EqualScoresGoToTheEarlierBlock) {
  Options o;
  o.tk = 500;
  Problem<TypeParam> p(o, 5);
  for (auto& x : p.k) x = TypeParam::put(1);
  p.run_and_check();
}

TYPED_TEST(HipSelect, NanAndInfinityAreScoresLikeAnyOther) {
  Options o;
  o.tk = 400;
  Problem<TypeParam> p(o, 6);
  std::mt19937 random(3);
  for (int i = 0; i < 40; ++i) {
    const double value = i % 3 == 0 ? std::nan("") : i % 3 == 1 ? INFINITY : -INFINITY;
    p.k[random() % p.k.size()] = TypeParam::put(value);
  }
  p.run_and_check();
  for (auto& x : p.q) x = TypeParam::put(std::nan(""));  // no score at all
  p.run_and_check();
}

TYPED_TEST(HipSelect, KeysPastTheVisibleOnesAreNotRead) {
  Options o;
  o.tq = 33;
  o.tk = 33;
  o.block_q = 16;
  o.block_k = 8;
  o.window = 3;
  o.mask_k = 8;
  Problem<TypeParam> p(o, 8), poisoned = p;
  for (int64_t h = 0; h < o.heads_kv; ++h) {
    for (int64_t j = 16; j < o.tk; ++j) { poisoned.k[(h * o.tk + j) * (o.dim + p.gap)] = TypeParam::put(INFINITY); }
  }
  p.run();
  poisoned.run();
  for (int64_t h = 0; h < o.heads_mask; ++h) {
    for (int64_t i = 0; i < p.length; ++i) {  // the first block's rows see 16 keys
      EXPECT_EQ(p.index[h * p.blocks * p.length + i], poisoned.index[h * p.blocks * p.length + i]);
    }
  }
}

TYPED_TEST(HipSelect, EmptyInputs) {
  for (int64_t tq : {0, 5}) {
    for (int64_t tk : {0, 5}) {
      Options o;
      o.tq = tq;
      o.tk = tk;
      Problem<TypeParam>(o, 9).run_and_check();
      o.batch = 0;
      Problem<TypeParam>(o, 9).run_and_check();
    }
  }
  Options o;
  o.mask_k = 1 << 30;  // a list longer than there are blocks is mostly padding; so long a one would not fit
  o.block_k = 1 << 24;
  Problem<TypeParam>(o, 9).run_and_check();
}

// A single key aligned with the queries among smooth ones is found whatever the number of rounds.
TEST(HipSelectSearch, FindsAPeak) {
  Options o;
  o.heads = o.heads_kv = o.heads_mask = 1;
  o.tq = 1;
  o.tk = 4096;
  o.dim = 1;
  o.window = 0;
  o.mask_k = 64;
  for (int64_t peak : {0, 77, 2048, 4094}) {
    Problem<F32> p(o, 1);
    const int64_t row = o.dim + p.gap;
    p.q[0] = 1;
    for (int64_t j = 0; j < o.tk; ++j) p.k[j * row] = static_cast<float>(-std::abs(j - peak));
    p.run_and_check();
    EXPECT_NE(std::find(p.index.begin(), p.index.end(), peak / 2 * 2), p.index.end()) << peak;
  }
}

TEST(HipRules, RoundsEndAtSingleBlocks) {
  for (int64_t nodes = 1; nodes < 40; ++nodes) {
    for (int64_t blocks = nodes; blocks < 700; ++blocks) {
      const int32_t rounds = hip_rounds(nodes, blocks);
      EXPECT_GE(nodes << rounds, blocks);
      EXPECT_TRUE(rounds == 0 || nodes << (rounds - 1) < blocks);
      HipNode largest{0, static_cast<int32_t>((blocks + nodes - 1) / nodes)};
      for (int32_t r = 0; r < rounds; ++r) largest = hip_right(largest);
      EXPECT_EQ(largest.size, 1) << nodes << " " << blocks;
    }
  }
}

TEST(HipRules, OrderIsThatOfTheScores) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> ascending{-inf, -3e38f, -2.f, -1.f, -1e-40f, 0.f, 1e-45f, 1e-40f, 1.f, 1.0000001f, 3e38f, inf};
  EXPECT_GT(hip_order(-inf), kNoScore);
  EXPECT_EQ(hip_order(-0.f), hip_order(0.f));
  for (size_t i = 1; i < ascending.size(); ++i) EXPECT_LT(hip_order(ascending[i - 1]), hip_order(ascending[i]));
}

}  // namespace
}  // namespace attn
