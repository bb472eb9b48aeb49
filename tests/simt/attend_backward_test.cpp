// The CUDA attention backward on the host, against the textbook in double (the CPU test's oracle).
#include "backward_check.h"
#include "cuda/sm80/key_gradients.h"
#include "cuda/sm80/query_gradients.h"
#include "cuda/smxx/attend_delta.h"

namespace attn {
namespace {

// The kernels in the order of a launch.
template <class E> void run(const AttendBackwardParams& params, simt::Order order = simt::Order::forward) {
  const AttendParams& p = params.forward;
  std::vector<float> delta(static_cast<size_t>(p.batch * p.heads * p.tq), std::nanf(""));
  const cuda::BackwardParams b{params, delta.data()};
  simt::launch<cuda::AttendDelta<DeviceElement<E>>>(b, order);
  simt::launch<cuda::SinkGradients<float>>(b, order);
  with_dim(p, [&](auto dim) {
    simt::launch<cuda::QueryGradients<DeviceElement<E>, dim>>(b, order);
    simt::launch<cuda::KeyGradients<DeviceElement<E>, dim>>(b, order);
  });
}

template <class E> void check(const AttendOptions& o, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  BackwardCase<E> c(trained(o), seed);
  run<E>(c.backward());
  compare_gradients<E>(c, c.backward(), c.g);
}

template <class E> class SimtAttendBackward : public testing::Test {};
using Elements = testing::Types<BF16, F16, F32>;
TYPED_TEST_SUITE(SimtAttendBackward, Elements);

TYPED_TEST(SimtAttendBackward, RandomCalls) {
  std::mt19937 random(TypeParam::dtype == DType::bf16 ? 1 : 2);
  for (uint32_t i = 0; i < 16 && !this->HasFatalFailure(); ++i) check<TypeParam>(small_call(random), i);
}

// Row tiles of 64 and 128, key tiles of 64.
TYPED_TEST(SimtAttendBackward, SizesAroundTiles) {
  for (int64_t tq : {1, 17, 64, 129}) {
    for (int64_t tk : {1, 63, 64, 130}) {
      AttendOptions o = one_head(tq, tk);
      o.schedule.causal = (tq + tk) % 2;
      o.dim = o.dim_v = 30;
      check<TypeParam>(o, 3);
    }
  }
  AttendOptions o = one_head(16, 8);
  o.schedule.causal = true;  // of a warp's rows the first eight see nothing
  check<TypeParam>(o, 3);
}

TYPED_TEST(SimtAttendBackward, Features) {
  for (int64_t dim : {1, 62, 64, 65, 128, 129, 256}) {
    AttendOptions o = one_head(20, 70);
    o.dim = dim;
    check<TypeParam>(o, 4);
    std::swap(o.dim, o.dim_v);
    check<TypeParam>(o, 5);
  }
}

TYPED_TEST(SimtAttendBackward, SchedulesAndModifiers) {
  for (AttendOptions o : every_modifier()) {
    o.schedule.selection_heads = 1;
    o.dlse = true;
    o.nan_keys = 1;
    check<TypeParam>(o, 6);
  }
}

// More row tiles than a block has threads to look at them: 20 x 8 heads against 128.
TYPED_TEST(SimtAttendBackward, ManyRowTiles) {
  AttendOptions o;
  ScheduleOptions& s = o.schedule;
  s.kind = ScheduleKind::layout;
  s.heads = 8;
  s.heads_kv = 1;
  s.tq = 320;
  s.tk = 100;
  s.block_q = s.block_k = 16;
  s.density = 0.03;
  o.dim = o.dim_v = 16;
  check<TypeParam>(o, 8);
}

// Two heads of a group of three would fit a tile; only one divides the group.
TYPED_TEST(SimtAttendBackward, GroupsOfThreeHeads) {
  for (int64_t tq : {12, 30}) {  // tiles have 32 rows of float32, 64 of others
    AttendOptions o;
    o.schedule.heads = 6;
    o.schedule.heads_kv = 2;
    o.schedule.tq = tq;
    o.schedule.tk = 70;
    o.schedule.causal = true;
    o.dim = o.dim_v = 16;
    check<TypeParam>(o, 12);
  }
}

// More rows of a head than a block has threads to sum their sinks.
TYPED_TEST(SimtAttendBackward, SinksOfManyRows) {
  AttendOptions o = one_head(300, 20);
  o.schedule.batch = 2;
  o.dim = o.dim_v = 16;
  o.sinks = true;
  check<TypeParam>(o, 13);
}

// A row of lse -inf has no gradient, whatever it might see: as if its dout were 0.
TYPED_TEST(SimtAttendBackward, RowsOfNoLseHaveNoGradient) {
  AttendOptions o = one_head(40, 70);
  o.schedule.causal = true;
  o.sinks = true;
  BackwardCase<TypeParam> got(o, 14), want(o, 14);
  for (int64_t t : {0, 7, 33}) {
    got.lse[static_cast<size_t>(t)] = -INFINITY;
    for (int64_t d = 0; d < o.dim_v; ++d) {
      got.out.at(0, 0, t, d) = TypeParam::put(NAN);
      want.dout.at(0, 0, t, d) = TypeParam::put(0);
    }
  }
  run<TypeParam>(got.backward());
  run<TypeParam>(want.backward());
  ASSERT_TRUE(got.g.same_bits(want.g));
}

// Nobody sees a key of weight -inf, whatever it holds.
TYPED_TEST(SimtAttendBackward, KeysOfNoWeight) {
  AttendOptions o;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tk = 128;
  o.key_weights = true;
  BackwardCase<TypeParam> c(o, 8);
  typename AttendCase<TypeParam>::Gradients want;
  // The textbook has no such keys: what they add to the sums is taken out by a weight of 2^-200.
  for (size_t key : {3, 64, 127}) c.key_weight[key] = -200;
  c.expect_backward(want);
  Expected out, lse;
  c.expect_forward(out, lse);
  for (size_t t = 0; t < 64; ++t) {
    c.lse[t] = static_cast<float>(lse.value[t]);
    for (int64_t d = 0; d < o.dim_v; ++d)
      c.out.at(0, 0, static_cast<int64_t>(t), d) = TypeParam::put(out.at(0, 0, t)[d]);
  }
  for (int64_t key : {3, 64, 127}) {
    c.key_weight[static_cast<size_t>(key)] = -INFINITY;
    for (int64_t d = 0; d < o.dim; ++d) c.k.at(0, 0, key, d) = c.v.at(0, 0, key, d) = TypeParam::put(NAN);
  }
  run<TypeParam>(c.backward());
  const double tolerance = kGradientTolerance<TypeParam>;
  compare_gradient("dq", want.dq, 1, tolerance, 1, [&](size_t i) { return TypeParam::get(c.g.dq[i]); });
  compare_gradient("dk", want.dk, 1, tolerance, 1, [&](size_t i) { return TypeParam::get(c.g.dk[i]); });
  compare_gradient("dv", want.dv, 1, tolerance, 1, [&](size_t i) { return TypeParam::get(c.g.dv[i]); });
  compare_gradient("dkey_log_weight", want.dkey_weight, 1, tolerance, 1, [&](size_t i) { return c.g.dkey_weight[i]; });
}

TYPED_TEST(SimtAttendBackward, EmptyInputs) {
  for (AttendOptions o : empty_inputs()) {
    check<TypeParam>(o, 9);
    // With the gap rows are aligned and copied by cp.async, which must be waited for where no row sees a key, too.
    o.dim = o.dim_v = 30;
    check<TypeParam>(o, 9);
  }
}

// The forward may leave out the lse of rows with a gate of 0.
TYPED_TEST(SimtAttendBackward, GatedRowsNeedNoLse) {
  AttendOptions o;
  o.gate = o.skip_gated = o.sinks = true;
  o.schedule.heads = 4;
  for (uint32_t seed = 0; seed < 2; ++seed) check<TypeParam>(o, seed);
}

TYPED_TEST(SimtAttendBackward, NanAndInfinityReachOnlyWhatSeesThem) {
  for (bool segments : {false, true}) {
    AttendOptions o = one_head(128, 128);
    o.schedule.causal = !segments;
    o.segments = segments;
    check_what_nan_reaches<TypeParam>(o, 50, run<TypeParam>);
  }
}

TYPED_TEST(SimtAttendBackward, PartsThatAreNotWantedAndOrderOfThreads) {
  std::mt19937 random(4);
  for (uint32_t i = 0; i < 3; ++i) {
    AttendOptions o = trained(small_call(random));
    if (i == 0) o.gate = o.dlse = true, o.skip_gated = false;  // rows with a gate of 0 that dlse gives a gradient
    check_parts<TypeParam>(o, i, run<TypeParam>);
  }
}

// Gradients of a sequence don't depend on what it is packed with, though its few rows share tiles with other heads'.
TYPED_TEST(SimtAttendBackward, SequencesOfAPackedBatchAreAlone) {
  AttendOptions o;
  ScheduleOptions& s = o.schedule;
  s.heads = 4;
  s.heads_kv = 1;
  s.cu_q = {0, 20, 90};
  s.cu_k = {0, 70, 100};
  s.tq = 90;
  s.tk = 100;
  BackwardCase<TypeParam> c(o, 11);
  run<TypeParam>(c.backward());
  const auto dq = c.g.dq, dk = c.g.dk, dv = c.g.dv;
  c.g = GradientTensors<TypeParam>(c.params());
  AttendBackwardParams b = c.backward();
  const std::vector<int32_t> cu_q = {0, 20}, cu_k = {0, 70};
  b.forward.cu_q = cu_q.data();
  b.forward.cu_k = cu_k.data();
  b.forward.sequences = 1;
  b.forward.tk = 70;
  std::vector<float> lse;  // lse is contiguous: its heads lie tq apart
  for (size_t h = 0; h < 4; ++h) lse.insert(lse.end(), c.lse.begin() + h * 90, c.lse.begin() + h * 90 + 20);
  b.forward.lse = lse.data();
  b.forward.tq = 20;
  run<TypeParam>(b);
  for (int64_t h = 0; h < 4; ++h)
    ASSERT_EQ(0, std::memcmp(&c.g.dq[h * 90 * 32], &dq[h * 90 * 32], 20 * 32 * sizeof(dq[0]))) << h;
  ASSERT_EQ(0, std::memcmp(c.g.dk.data(), dk.data(), 70 * 32 * sizeof(dk[0])));
  ASSERT_EQ(0, std::memcmp(c.g.dv.data(), dv.data(), 70 * 32 * sizeof(dv[0])));
}

// Every key of every sequence has one place, found without the host knowing where sequences begin.
TEST(SimtAttendGrid, EveryKeyHasOnePlace) {
  std::mt19937 random(5);
  for (int i = 0; i < 300; ++i) {
    ScheduleOptions o = random_schedule(random, false);
    SCOPED_TRACE(testing::Message() << o);
    const ScheduleCase c(o, 5);
    const AttendParams p = c.params();
    std::vector<int> taken(static_cast<size_t>(o.batch * o.heads_kv * o.tk), 0), want(taken);
    for (const TestSequence& s : c.sequences())
      for (int64_t h = 0; h < o.heads_kv; ++h)
        for (int64_t k = 0; k < s.keys; ++k)
          want[static_cast<size_t>((s.batch * o.heads_kv + h) * o.tk + s.k_token + k)] = 1;
    using Items = cuda::KeyGrid<cuda::kTileKeys>;
    const cuda::Grid grid = Items::grid(p);
    for (int64_t y = 0; y < grid.y; ++y) {
      for (int64_t x = 0; x < grid.x; ++x) {
        cuda::KeyItem item;
        if (!Items::open(p, x, y, item)) continue;
        ASSERT_LE(item.end - item.begin, cuda::kTileKeys);
        for (int32_t k = item.begin; k < item.end; ++k)
          ++taken[static_cast<size_t>((item.seq.batch * o.heads_kv + y) * o.tk + item.seq.k_token + k)];
      }
    }
    ASSERT_EQ(taken, want);
  }
}

}  // namespace
}  // namespace attn
