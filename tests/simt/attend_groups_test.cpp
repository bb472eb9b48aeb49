// The attention forward of sm_90a on the host, against the textbook in double (the CPU test's oracle).
#include "attend_groups_check.h"
#include "cuda/sm90/attend_forward.h"

namespace attn {
namespace {

template <class E> void run(const AttendParams& p, simt::Order order = simt::Order::forward) {
  ASSERT_TRUE(cuda::groups_serve(p));
  const cuda::AttendGroupsParams all{p, map_of(p.k, cuda::tiled_keys(p, p.k)), map_of(p.v, cuda::tiled_keys(p, p.v))};
  if (p.dim == 64) simt::launch<cuda::AttendGroups<DeviceElement<E>, 64>>(all, order);
  else simt::launch<cuda::AttendGroups<DeviceElement<E>, 128>>(all, order);
}

template <class E> void check(const AttendOptions& o, uint32_t seed, simt::Order order = simt::Order::forward) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  AttendCase<E> c(o, seed);
  run<E>(c.params(), order);
  compare(c);
}

template <class E> class SimtAttendGroups : public testing::Test {};
using Elements = testing::Types<BF16, F16>;
TYPED_TEST_SUITE(SimtAttendGroups, Elements);

TYPED_TEST(SimtAttendGroups, RandomCalls) {
  std::mt19937 random(TypeParam::dtype == DType::bf16 ? 1 : 2);
  for (uint32_t i = 0; i < 24 && !this->HasFatalFailure(); ++i)
    check<TypeParam>(served_call(random), i, static_cast<simt::Order>(i % 3));
}

// Row tiles of 128, warpgroups of 64, key tiles of two pieces of 64; pipelines of two stages.
TYPED_TEST(SimtAttendGroups, SizesAroundTiles) {
  for (int64_t tq : {17, 64, 65, 128, 129}) {
    for (int64_t tk : {1, 64, 65, 128, 129, 385}) {
      AttendOptions o = plain(tq, tk);
      o.schedule.causal = (tq + tk) % 2;
      check<TypeParam>(o, 3);
    }
  }
}

TYPED_TEST(SimtAttendGroups, CausalAlignmentAndEmptyRows) {
  for (int64_t tk : {40, 200, 520}) {
    AttendOptions o = plain(150, tk, 128);
    o.schedule.causal = true;
    check<TypeParam>(o, 4);
    o.schedule.left = 30;
    check<TypeParam>(o, 5);
  }
}

TYPED_TEST(SimtAttendGroups, Layouts) {
  for (const AttendOptions& o : served_layouts()) check<TypeParam>(o, 6);
}

// What a mask hides doesn't matter; what a row sees isn't hidden.
TYPED_TEST(SimtAttendGroups, NanAndInfinityReachOnlyTheRowsThatSeeThem) {
  for (bool causal : {false, true}) {
    AttendOptions o = plain(150, 150);
    o.schedule.causal = causal;
    AttendCase<TypeParam> c(o, 10);
    const int64_t key = 50;
    for (int64_t d = 0; d < 4; ++d)
      c.v.at(0, 0, key, d) = TypeParam::put(std::initializer_list<double>{NAN, INFINITY, -INFINITY, 1}.begin()[d]);
    run<TypeParam>(c.params());
    for (int64_t t = 0; t < 150; ++t) {
      const bool sees = !causal || t >= key;
      ASSERT_EQ(std::isnan(c.out.get(0, 0, t, 0)), sees) << t;
      ASSERT_EQ(c.out.get(0, 0, t, 1) == INFINITY, sees) << t;
      ASSERT_EQ(c.out.get(0, 0, t, 2) == -INFINITY, sees) << t;
      for (int64_t d = 3; d < o.dim_v; ++d) ASSERT_TRUE(std::isfinite(c.out.get(0, 0, t, d))) << t;
    }
  }
}

TYPED_TEST(SimtAttendGroups, OrderOfThreadsAndBatchDoNotMatter) {
  AttendOptions o = plain(150, 300, 128);
  o.schedule.batch = 2;
  o.schedule.causal = true;
  AttendCase<TypeParam> c(o, 11), other(o, 11);
  run<TypeParam>(c.params());
  run<TypeParam>(other.params(), simt::Order::mixed);
  ASSERT_TRUE(same_bits(c, other));
  const auto together = c.out.data;
  AttendParams p = c.params();
  p.batch = 1;
  for (View4* x : {&p.q, &p.k, &p.v})
    x->data = static_cast<char*>(x->data) + x->batch * static_cast<int64_t>(sizeof(together[0]));
  run<TypeParam>(p);
  const size_t entry = static_cast<size_t>(p.out.batch) * sizeof(together[0]);
  ASSERT_EQ(0, std::memcmp(c.out.data.data(), together.data() + p.out.batch, entry));
}

TEST(SimtAttendGroupsLists, MayHoldAnything) {
  AnyIndices any;
  for (int round = 0; round < 8; ++round) {
    AttendCase<BF16> c(any_indices_call(round), 12);
    AttendParams p = c.params();
    any.put(p, round % 4 > 1);
    run<BF16>(p);
    for (int64_t t = 0; t < p.tq; ++t)
      for (int64_t d = p.dim_v; d < p.dim_v + c.out.gap; ++d) ASSERT_TRUE(std::isnan(c.out.get(0, 0, t, d)));
  }
}

// A word of visibility is that of its keys one by one.
TEST(SimtAttendGroupsMask, WordsAreThoseOfKeys) {
  for (int32_t first : {0, 32, 1000})
    for (int32_t lo : {-kUnbounded, -5, first - 1, first, first + 1, first + 31, first + 32, kUnbounded})
      for (int32_t hi :
           {-kUnbounded, -5, first - 1, first, first + 1, first + 30, first + 31, first + 32, kUnbounded}) {
        uint32_t want = 0;
        for (int32_t j = 0; j < 32; ++j) want |= static_cast<uint32_t>(visible(first + j, lo, hi, hi, 0)) << j;
        ASSERT_EQ(visible_word(first, lo, hi), want) << first << " " << lo << " " << hi;
      }
}

// Calls that other kernels take, each for one reason.
TEST(SimtAttendGroupsRule, WhatIsLeftToOtherKernels) {
  const AttendOptions o = plain(130, 200);
  AttendCase<BF16> c(o, 1);
  const AttendParams served = c.params();
  ASSERT_TRUE(cuda::groups_serve(served));
  const auto refused = [&](auto&& change) {
    AttendParams p = served;
    change(p);
    return !cuda::groups_serve(p);
  };
  EXPECT_TRUE(refused([](AttendParams& p) { p.dtype = DType::f32; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.dim = 96; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.dim_v = 128; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.tq = 16; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.tk = 0; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.rule.sink = 1; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.scale = -1; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.softcap = 1; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.skip_gated = true; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.schedule = ScheduleKind::gathered; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.k.data = static_cast<char*>(p.k.data) + 8; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.v.token = 66; }));
  EXPECT_TRUE(refused([](AttendParams& p) { p.batch = 2, p.k.batch = 0; }));
  EXPECT_TRUE(refused([](AttendParams& p) {
    p.schedule = ScheduleKind::layout;
    p.layout.block_q = 64;
    p.layout.block_k = 32;
  }));
  EXPECT_FALSE(refused([](AttendParams& p) { p.k.batch = 0; }));  // of one entry it has no meaning
}

}  // namespace
}  // namespace attn
