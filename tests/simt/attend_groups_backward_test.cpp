// The attention backward of sm_90a on the host, against the textbook in double (the CPU test's oracle).
#include "attend_groups_check.h"
#include "backward_check.h"
#include "cuda/sm90/key_gradients.h"
#include "cuda/smxx/attend_delta.h"

namespace attn {
namespace {

// The kernels in the order of a launch.
template <class E> void run(const AttendBackwardParams& params, simt::Order order = simt::Order::forward) {
  ASSERT_TRUE(cuda::groups_serve(params));
  const AttendParams& p = params.forward;
  std::vector<float> delta(static_cast<size_t>(p.batch * p.heads * p.tq), std::nanf(""));
  const cuda::BackwardParams b{params, delta.data()};
  simt::launch<cuda::AttendDelta<DeviceElement<E>>>(b, order);
  simt::launch<cuda::SinkGradients<float>>(b, order);
  const cuda::GroupGradientsParams all{b, map_of(p.q, cuda::tiled_rows(p, p.q), cuda::kTileRows),
                                       map_of(b.dout, cuda::tiled_rows(p, b.dout), cuda::kTileRows),
                                       map_of(p.k, cuda::tiled_keys(p, p.k)), map_of(p.v, cuda::tiled_keys(p, p.v))};
  const auto with = [&](auto dim) {
    simt::launch<cuda::QueryGroups<DeviceElement<E>, dim>>(all, order);
    simt::launch<cuda::KeyGroups<DeviceElement<E>, dim>>(all, order);
  };
  if (p.dim == 64) with(std::integral_constant<int, 64>{});
  else with(std::integral_constant<int, 128>{});
}

template <class E> void check(const AttendOptions& o, uint32_t seed, simt::Order order = simt::Order::forward) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  BackwardCase<E> c(trained(o), seed);
  run<E>(c.backward(), order);
  compare_gradients<E>(c, c.backward(), c.g);
}

// Of the CPU test's random calls, those with enough rows.
AttendOptions served_gradients(std::mt19937& random) {
  AttendOptions o = served_call(random);
  if (o.schedule.cu_q.empty()) {
    o.schedule.tq = std::max<int64_t>(o.schedule.tq, 64);
    if (o.schedule.kind == ScheduleKind::strided) o.schedule.tk = std::max(o.schedule.tk, o.schedule.tq);
  }
  return o;
}

template <class E> class SimtGroupGradients : public testing::Test {};
using Elements = testing::Types<BF16, F16>;
TYPED_TEST_SUITE(SimtGroupGradients, Elements);

TYPED_TEST(SimtGroupGradients, RandomCalls) {
  std::mt19937 random(TypeParam::dtype == DType::bf16 ? 1 : 2);
  for (uint32_t i = 0; i < 16 && !this->HasFatalFailure(); ++i)
    check<TypeParam>(served_gradients(random), i, static_cast<simt::Order>(i % 3));
}

// Of dQ, row tiles of 128 in warpgroups of 64 and key tiles of two pieces of 64; of dK and dV keys in blocks of 128 and
// warpgroups of 64, row tiles of 64. Pipelines of two and three stages.
TYPED_TEST(SimtGroupGradients, SizesAroundTiles) {
  for (int64_t tq : {64, 65, 129, 257}) {
    for (int64_t tk : {1, 64, 65, 129, 385}) {
      if (tq == 257 && tk > 129) continue;
      AttendOptions o = plain(tq, tk);
      o.schedule.causal = (tq + tk) % 2;
      o.dlse = tk % 2;
      check<TypeParam>(o, 3);
    }
  }
}

TYPED_TEST(SimtGroupGradients, CausalAlignmentWindowsAndEmptyRows) {
  for (int64_t tk : {40, 200, 330}) {
    AttendOptions o = plain(150, tk, 128);
    o.schedule.causal = true;
    check<TypeParam>(o, 4);
    o.schedule.left = 30;
    check<TypeParam>(o, 5);
  }
}

TYPED_TEST(SimtGroupGradients, Layouts) {
  for (const AttendOptions& o : served_layouts()) check<TypeParam>(o, 6);
}

// More row tiles than the producer looks at together, of several heads: 3 heads of 12.
TYPED_TEST(SimtGroupGradients, ManyRowTiles) {
  AttendOptions o = plain(760, 130);
  ScheduleOptions& s = o.schedule;
  s.kind = ScheduleKind::layout;
  s.heads = 3;
  s.block_q = s.block_k = 64;
  s.density = 0.15;
  s.bits = true;
  o.gate = true;
  check<TypeParam>(o, 8);
}

TYPED_TEST(SimtGroupGradients, NanAndInfinityReachOnlyWhatSeesThem) {
  AttendOptions o = plain(150, 150);
  o.schedule.causal = true;
  check_what_nan_reaches<TypeParam>(o, 80, run<TypeParam>);
}

TYPED_TEST(SimtGroupGradients, PartsThatAreNotWantedAndOrderOfThreads) {
  std::mt19937 random(4);
  for (uint32_t i = 0; i < 2; ++i) check_parts<TypeParam>(trained(served_gradients(random)), i, run<TypeParam>);
}

// Gradients of a sequence don't depend on what it is packed with, though it shares tiles with others. Beside NaN they
// are computed in another way, whose sums are rounded differently.
TYPED_TEST(SimtGroupGradients, SequencesOfAPackedBatchAreAlone) {
  AttendOptions o = plain(170, 180);
  ScheduleOptions& s = o.schedule;
  s.heads = 2;
  s.cu_q = {0, 70, 170};
  s.cu_k = {0, 90, 180};
  BackwardCase<TypeParam> c(o, 11);
  run<TypeParam>(c.backward());
  const auto dq = c.g.dq, dk = c.g.dk, dv = c.g.dv;
  const size_t dim = static_cast<size_t>(o.dim);
  for (double other : {7., static_cast<double>(NAN)}) {
    SCOPED_TRACE(other);
    for (int64_t d = 0; d < o.dim; ++d) {
      for (int64_t h = 0; h < 2; ++h) c.q.at(0, h, 70, d) = c.dout.at(0, h, 70, d) = TypeParam::put(other);
      c.k.at(0, 0, 90, d) = c.v.at(0, 0, 90, d) = TypeParam::put(other);
    }
    c.g = GradientTensors<TypeParam>(c.params());
    run<TypeParam>(c.backward());
    const auto same = [&](const auto& got, const auto& want, size_t begin, size_t tokens) {
      for (size_t i = begin * dim; i < (begin + tokens) * dim; ++i) {
        const double x = TypeParam::get(got[i]), y = TypeParam::get(want[i]);
        ASSERT_NEAR(x, y, std::isnan(other) ? kGradientTolerance<TypeParam> * (1 + std::abs(y)) : 0) << i;
      }
    };
    for (size_t h = 0; h < 2; ++h) same(c.g.dq, dq, h * 170, 70);
    same(c.g.dk, dk, 0, 90);
    same(c.g.dv, dv, 0, 90);
  }
}

TEST(SimtGroupGradientsLists, MayHoldAnything) {
  AnyIndices any;
  for (int round = 0; round < 8; ++round) {
    BackwardCase<BF16> c(any_indices_call(round), 12);
    AttendBackwardParams b = c.backward();
    any.put(b.forward, round % 4 > 1);
    run<BF16>(b);
  }
}

// Calls that other kernels take, each for one reason.
TEST(SimtGroupGradientsRule, WhatIsLeftToOtherKernels) {
  BackwardCase<BF16> c(plain(130, 200), 1);
  const AttendBackwardParams served = c.backward();
  ASSERT_TRUE(cuda::groups_serve(served));
  const auto refused = [&](auto&& change) {
    AttendBackwardParams b = served;
    change(b);
    return !cuda::groups_serve(b);
  };
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.forward.dtype = DType::f32; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.forward.tq = 63; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.forward.softcap = 1; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.forward.skip_gated = true; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.forward.schedule = ScheduleKind::gathered; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.forward.q.token = 66; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.dout.token = 0; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.dout.data = static_cast<char*>(b.dout.data) + 8; }));
  EXPECT_TRUE(refused([](AttendBackwardParams& b) { b.forward.v.token = 66; }));
}

}  // namespace
}  // namespace attn
