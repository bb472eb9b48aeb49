// The CUDA selection kernel on the host, against a search written from the definition (the CPU test's).
#include "cuda/sm80/hip_select.h"

#include "../cpp/hip_case.h"
#include "cuda/element.h"

namespace attn {
namespace {

template <class E> void run(const SelectParams& p, simt::Order order = simt::Order::forward) {
  ASSERT_LE(p.dim, 256);
  ASSERT_LE(cuda::hip_nodes(p), p.dim <= 64 ? 512 : 64);
  using T = cuda::Element<E::dtype>;
  const bool many = cuda::hip_nodes(p) > 64;
  if (p.dim <= 64 && many) simt::launch<cuda::HipSelect<T, 64, 512>>(p, order);
  else if (p.dim <= 64) simt::launch<cuda::HipSelect<T, 64, 64>>(p, order);
  else if (p.dim <= 128) simt::launch<cuda::HipSelect<T, 128, 64>>(p, order);
  else simt::launch<cuda::HipSelect<T, 256, 64>>(p, order);
}

template <class E> void check(const HipOptions& o, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << "seed " << seed << ": H " << o.heads << "/" << o.heads_kv << "/" << o.heads_mask
                                  << " T " << o.tq << "x" << o.tk << " D " << o.dim << " mask_k " << o.mask_k
                                  << " blocks " << o.block_q << "x" << o.block_k << " stride " << o.stride_q
                                  << " window " << o.window << " center " << o.center << " causal " << o.causal);
  HipCase<E> c(o, seed);
  run<E>(c.params());
  c.check();
}

template <class E> class SimtHipSelect : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtHipSelect, Elements);

// 62 features: rows are copied by cp.async.
TYPED_TEST(SimtHipSelect, MatchesTheDefinition) {
  std::mt19937 random(static_cast<uint32_t>(TypeParam::dtype));
  auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  for (uint32_t i = 0; i < 24 && !this->HasFatalFailure(); ++i) {
    HipOptions o;
    o.heads_kv = pick({1, 1, 2});
    o.heads = o.heads_kv * pick({1, 2});
    o.heads_mask = pick({o.heads, o.heads_kv, 1});
    o.batch = o.heads == 1 ? pick({1, 2}) : 1;
    o.tq = pick({1, 2, 31, 64});
    o.tk = pick({1, 40, 129, 300});
    o.dim = pick({1, 17, 62});
    o.mask_k = pick({1, 5, 16, 40});
    o.block_q = pick({16, 32, 48});
    o.block_k = pick({1, 2, 3, 16});
    o.stride_q = pick({1, 2, 5, 64});
    o.window = pick({0, 1, 8, 30});
    o.center = random() % 2;
    o.causal = random() % 2;
    check<TypeParam>(o, 100 + i);
  }
}

// Tiles of 64 keys, blocks that cross them and blocks that are longer; halves of several per thread.
TYPED_TEST(SimtHipSelect, ManyTilesOfKeys) {
  HipOptions o;
  o.heads = o.heads_kv = o.heads_mask = 1;
  o.tq = 8;
  o.tk = 700;
  o.mask_k = 200;
  o.block_k = 1;
  for (bool center : {true, false}) {
    o.center = center;
    check<TypeParam>(o, 1);
  }
  o.block_k = 48;
  o.mask_k = 100;
  check<TypeParam>(o, 2);
  o.block_k = 150;
  o.mask_k = 300;
  check<TypeParam>(o, 3);
}

// More sampled rows than lie in shared memory at once, several kv heads in a list, and rows that aren't a multiple
// of 16.
TYPED_TEST(SimtHipSelect, ManyRowsAndHeads) {
  for (auto [heads, heads_kv, heads_mask] : {std::array<int64_t, 3>{4, 1, 1}, {4, 2, 1}, {4, 2, 2}}) {
    HipOptions o;
    o.heads = heads;
    o.heads_kv = heads_kv;
    o.heads_mask = heads_mask;
    o.tq = o.block_q = 41;
    o.stride_q = 1;
    o.tk = 150;
    check<TypeParam>(o, 4);
  }
}

TYPED_TEST(SimtHipSelect, Features) {
  for (int64_t dim : {64, 65, 126, 254, 256}) {
    HipOptions o;
    o.heads = o.heads_kv = o.heads_mask = 1;
    o.tq = 4;
    o.dim = dim;
    check<TypeParam>(o, 5);
  }
}

TYPED_TEST(SimtHipSelect, EqualScoresGoToTheEarlierBlock) {
  HipOptions o;
  o.heads = o.heads_kv = o.heads_mask = 1;
  o.tq = 4;
  o.tk = 500;
  o.mask_k = 150;
  o.block_k = 1;
  HipCase<TypeParam> c(o, 5);
  for (auto& x : c.k) x = TypeParam::put(1);
  run<TypeParam>(c.params());
  c.check();
}

TYPED_TEST(SimtHipSelect, NanAndInfinityAreScoresLikeAnyOther) {
  HipOptions o;
  o.heads = o.heads_kv = o.heads_mask = 1;
  o.tk = 400;
  HipCase<TypeParam> c(o, 6);
  std::mt19937 random(3);
  for (int i = 0; i < 40; ++i) {
    const double value = i % 3 == 0 ? std::nan("") : i % 3 == 1 ? INFINITY : -INFINITY;
    c.k[random() % c.k.size()] = TypeParam::put(value);
  }
  run<TypeParam>(c.params());
  c.check();
  for (auto& x : c.q) x = TypeParam::put(std::nan(""));  // no score at all
  run<TypeParam>(c.params());
  c.check();
}

TYPED_TEST(SimtHipSelect, KeysPastTheVisibleOnesAreNotRead) {
  HipOptions o;
  o.tq = o.tk = 33;
  o.block_q = 16;
  o.block_k = 8;
  o.window = 3;
  o.mask_k = 8;
  HipCase<TypeParam> c(o, 8);
  run<TypeParam>(c.params());
  const std::vector<int32_t> before = c.index;
  for (int64_t h = 0; h < o.heads_kv; ++h)
    for (int64_t j = 16; j < o.tk; ++j)
      c.k[static_cast<size_t>((h * o.tk + j) * (o.dim + c.gap))] = TypeParam::put(INFINITY);
  run<TypeParam>(c.params());
  for (int64_t h = 0; h < o.heads_mask; ++h) {
    for (int64_t i = 0; i < c.length; ++i) {  // the first block's rows see 16 keys
      const size_t at = static_cast<size_t>(h * c.blocks * c.length + i);
      EXPECT_EQ(c.index[at], before[at]);
    }
  }
}

TYPED_TEST(SimtHipSelect, EmptyInputsAndListsWithoutSearch) {
  for (int64_t tq : {0, 5}) {
    for (int64_t tk : {0, 5}) {
      HipOptions o;
      o.tq = tq;
      o.tk = tk;
      check<TypeParam>(o, 9);
      o.batch = 0;
      check<TypeParam>(o, 9);
    }
  }
  HipOptions o;
  o.tk = 1200;
  o.mask_k = 1300;  // more nodes than any search holds
  o.block_k = 1;
  EXPECT_EQ(cuda::hip_nodes(HipCase<TypeParam>(o, 9).params()), 0);
  check<TypeParam>(o, 9);
}

TYPED_TEST(SimtHipSelect, TheOrderOfThreadsDoesNotMatter) {
  HipOptions o;
  o.heads = 4;
  o.tk = 300;
  HipCase<TypeParam> c(o, 10);
  run<TypeParam>(c.params());
  for (simt::Order order : {simt::Order::backward, simt::Order::mixed}) {
    HipCase<TypeParam> other(o, 10);
    run<TypeParam>(other.params(), order);
    EXPECT_EQ(c.index, other.index);
  }
}

// Lists are searched by the kernel exactly where the count of nodes says so.
TEST(SimtHipNodes, AreThoseOfTheLongestSearch) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    SelectParams p{};
    p.tq = static_cast<int64_t>(random() % 100);
    p.tk = static_cast<int64_t>(random() % 300);
    p.mask_k = 1 + static_cast<int64_t>(random() % 100);
    p.block_k = 1 + static_cast<int64_t>(random() % 8);
    p.block_q = 1 + static_cast<int64_t>(random() % 40);
    p.stride_q = 1;
    p.window = static_cast<int64_t>(random() % 100);
    p.causal = random() % 2;
    int64_t want = 0;
    for (int64_t b = 0; b < hip_query_blocks(p); ++b) {
      const HipSearch s = hip_search(p, b);
      if (s.rounds > 0) want = std::max<int64_t>(want, s.nodes);
    }
    ASSERT_EQ(cuda::hip_nodes(p), want);
  }
}

}  // namespace
}  // namespace attn
