// hip_select against a search written from the definition.
#include "hip_case.h"

#include "attn/cpu.h"

namespace attn {
namespace {

using Options = HipOptions;

template <class E> struct Problem : HipCase<E> {
  using HipCase<E>::HipCase;
  void run() { cpu::hip_select(this->params()); }
  void run_and_check() {
    run();
    this->check();
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
