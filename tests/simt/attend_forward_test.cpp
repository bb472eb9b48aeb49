// The CUDA attention forward on the host, against the textbook in double (the CPU test's oracle).
#include "cuda/sm80/attend_forward.h"

#include "attend_check.h"

namespace attn {
namespace {

template <class E> void run(const AttendParams& p, simt::Order order = simt::Order::forward) {
  with_dim(p, [&](auto dim) { simt::launch<cuda::AttendForward<DeviceElement<E>, dim>>(p, order); });
}

template <class E> void check(const AttendOptions& o, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  AttendCase<E> c(o, seed);
  run<E>(c.params());
  compare(c);
}

template <class E> class SimtAttendForward : public testing::Test {};
using Elements = testing::Types<BF16, F16, F32>;
TYPED_TEST_SUITE(SimtAttendForward, Elements);

TYPED_TEST(SimtAttendForward, RandomCalls) {
  std::mt19937 random(TypeParam::dtype == DType::bf16 ? 1 : 2);
  for (uint32_t i = 0; i < 40 && !this->HasFatalFailure(); ++i) check<TypeParam>(small_call(random), i);
}

// Row tiles of 128, warps of 16 rows, key tiles of 64.
TYPED_TEST(SimtAttendForward, SizesAroundTiles) {
  for (int64_t tq : {1, 15, 17, 128, 129}) {
    for (int64_t tk : {1, 63, 64, 65, 130}) {
      AttendOptions o = one_head(tq, tk);
      o.schedule.causal = (tq + tk) % 2;
      o.dim = o.dim_v = 30;
      check<TypeParam>(o, 3);
    }
  }
}

TYPED_TEST(SimtAttendForward, Features) {
  for (int64_t dim : {1, 8, 62, 64, 65, 126, 128, 129, 254, 256}) {
    AttendOptions o = one_head(20, 70);
    o.dim = dim;
    check<TypeParam>(o, 4);
    std::swap(o.dim, o.dim_v);
    check<TypeParam>(o, 5);
  }
}

TYPED_TEST(SimtAttendForward, SchedulesAndModifiers) {
  for (AttendOptions o : every_modifier()) {
    if (o.schedule.cu_q.empty()) o.schedule.batch = 2;
    o.nan_keys = 2;
    check<TypeParam>(o, 6);
  }
}

// Whole key tiles that position alone would show to every row.
TYPED_TEST(SimtAttendForward, BitsCutWholeTiles) {
  AttendOptions o;
  o.schedule.kind = ScheduleKind::layout;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tk = 256;
  o.schedule.block_k = 64;
  o.schedule.density = 1;
  o.schedule.bits = true;
  check<TypeParam>(o, 8);
}

// Nobody sees a key of weight -inf, whatever it holds.
TYPED_TEST(SimtAttendForward, KeysOfNoWeight) {
  AttendOptions o;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tk = 192;
  o.key_weights = true;
  AttendCase<TypeParam> c(o, 8);
  for (int64_t key : {3, 64, 191}) {
    c.key_weight[static_cast<size_t>(key)] = -INFINITY;
    for (int64_t d = 0; d < o.dim; ++d) c.k.at(0, 0, key, d) = c.v.at(0, 0, key, d) = TypeParam::put(NAN);
  }
  run<TypeParam>(c.params());
  compare(c);
}

TYPED_TEST(SimtAttendForward, PagedKeys) {
  for (int64_t page : {1, 16, 100}) {
    AttendOptions o;
    o.schedule.batch = 2;
    o.schedule.heads = 4;
    o.schedule.tq = 5;
    o.schedule.tk = 150;
    o.schedule.key_lengths = {150, 77};
    o.schedule.causal = true;
    o.page = page;
    o.dim = 30;
    o.dim_v = 22;
    check<TypeParam>(o, 7);
  }
}

TYPED_TEST(SimtAttendForward, EmptyInputs) {
  for (const AttendOptions& o : empty_inputs()) check<TypeParam>(o, 9);
}

// What a mask hides doesn't matter; what a row sees isn't hidden.
TYPED_TEST(SimtAttendForward, NanAndInfinityReachOnlyTheRowsThatSeeThem) {
  AttendOptions o;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tq = o.schedule.tk = 100;
  for (bool causal : {false, true}) {
    o.schedule.causal = causal;
    AttendCase<TypeParam> c(o, 10);
    const int64_t key = 50;
    for (int64_t d = 0; d < 4; ++d)
      c.v.at(0, 0, key, d) = TypeParam::put(std::initializer_list<double>{NAN, INFINITY, -INFINITY, 1}.begin()[d]);
    c.v.at(0, 0, key + 1, 1) = TypeParam::put(-INFINITY);
    run<TypeParam>(c.params());
    for (int64_t t = 0; t < 100; ++t) {
      const bool sees = !causal || t >= key, sees_next = !causal || t > key;
      ASSERT_EQ(std::isnan(c.out.get(0, 0, t, 0)), sees) << t;
      ASSERT_EQ(std::isnan(c.out.get(0, 0, t, 1)), sees_next) << t;
      ASSERT_EQ(c.out.get(0, 0, t, 1) == INFINITY, sees && !sees_next) << t;
      ASSERT_EQ(c.out.get(0, 0, t, 2) == -INFINITY, sees) << t;
      for (int64_t d = 3; d < o.dim_v; ++d) ASSERT_TRUE(std::isfinite(c.out.get(0, 0, t, d))) << t;
    }
  }
}

TYPED_TEST(SimtAttendForward, OrderOfThreadsAndBatchDoNotMatter) {
  std::mt19937 random(3);
  for (uint32_t i = 0; i < 3; ++i) {
    const AttendOptions o = small_call(random);
    SCOPED_TRACE(testing::Message() << o);
    AttendCase<TypeParam> c(o, i), other(o, i);
    run<TypeParam>(c.params());
    run<TypeParam>(other.params(), i % 2 ? simt::Order::mixed : simt::Order::backward);
    ASSERT_TRUE(same_bits(c, other));
  }
  AttendOptions o;
  o.schedule.batch = 3;
  o.schedule.tq = 30;
  o.schedule.tk = 90;
  AttendCase<TypeParam> c(o, 11);
  run<TypeParam>(c.params());
  const auto together = c.out.data;
  AttendParams p = c.params();
  p.batch = 1;
  for (View4* x : {&p.q, &p.k, &p.v})
    x->data = static_cast<char*>(x->data) + 2 * x->batch * static_cast<int64_t>(sizeof(together[0]));
  run<TypeParam>(p);
  const size_t entry = static_cast<size_t>(p.out.batch) * sizeof(together[0]);
  ASSERT_EQ(0, std::memcmp(c.out.data.data(), together.data() + 2 * p.out.batch, entry));
}

// Tensor cores cut sums off, which shows where all terms have one sign: the error of a sum of products of float32
// against that of the textbook's formulas in float32.
TEST(SimtAttendFloat, LongSumsOfOneSign) {
  for (auto [tk, dim] : {std::array<int64_t, 2>{3000, 64}, {700, 256}}) {
    AttendOptions o = one_head(3, tk);
    o.dim = o.dim_v = dim;
    o.scale = 0.05;
    AttendCase<F32> c(o, 13);
    for (auto* x : {&c.q, &c.k, &c.v})
      for (int64_t t = 0; t < x->tokens; ++t)
        for (int64_t d = 0; d < dim; ++d) x->at(0, 0, t, d) = 0.5f + std::abs(x->at(0, 0, t, d));
    run<F32>(c.params());
    const auto attend = [&](auto real, int64_t t) {
      using Real = decltype(real);
      std::vector<Real> weight, out(static_cast<size_t>(dim), 0);
      Real top = -INFINITY, sum = 0;
      for (int64_t j = 0; j < tk; ++j) {
        Real x = 0;
        for (int64_t d = 0; d < dim; ++d) x += static_cast<Real>(c.q.at(0, 0, t, d)) * c.k.at(0, 0, j, d);
        weight.push_back(x * static_cast<Real>(o.scale));
        top = std::max(top, weight.back());
      }
      for (Real& w : weight) sum += w = std::exp(w - top);
      for (int64_t j = 0; j < tk; ++j)
        for (int64_t d = 0; d < dim; ++d)
          out[static_cast<size_t>(d)] += weight[static_cast<size_t>(j)] / sum * c.v.at(0, 0, j, d);
      return out;
    };
    double ours = 0, plain = 0, largest = 0;
    for (int64_t t = 0; t < 3; ++t) {
      const std::vector<double> exact = attend(0., t);
      const std::vector<float> usual = attend(0.f, t);
      for (size_t d = 0; d < exact.size(); ++d) {
        ours = std::max(ours, std::abs(c.out.get(0, 0, t, static_cast<int64_t>(d)) - exact[d]));
        plain = std::max(plain, std::abs(usual[d] - exact[d]));
        largest = std::max(largest, exact[d]);
      }
    }
    RecordProperty("ours", testing::PrintToString(ours / largest));
    EXPECT_LE(ours, 1e-6 * largest) << "float32 as in the textbook: " << plain / largest;
    EXPECT_LE(ours, 2 * plain + 1e-5 * largest);
  }
}

TEST(SimtAttendLists, MayHoldAnything) {
  AnyIndices any;
  for (int round = 0; round < 12; ++round) {
    AttendOptions o;
    ScheduleOptions& s = o.schedule;
    s.kind = std::initializer_list<ScheduleKind>{ScheduleKind::layout, ScheduleKind::gathered, ScheduleKind::range}
                 .begin()[round % 3];
    s.batch = 1;
    s.tq = 70;
    s.tk = 100;
    s.full_list = s.bits = true;
    s.causal = round % 2;
    s.sink = 2;
    s.left = 30;
    if (s.kind == ScheduleKind::range) s.cu_q = {0, 30, 70}, s.cu_k = {0, 40, 100};
    o.dim = o.dim_v = 30;
    AttendCase<BF16> c(o, 12);
    AttendParams p = c.params();
    any.put(p, round % 2);
    run<BF16>(p);
    for (int64_t t = 0; t < s.tq; ++t)
      for (int64_t d = o.dim_v; d < o.dim_v + c.out.gap; ++d) ASSERT_TRUE(std::isnan(c.out.get(0, 0, t, d)));
  }
}

// Every row of every sequence has one place, found without the host knowing where sequences begin.
TEST(SimtAttendGrid, EveryRowHasOnePlace) {
  std::mt19937 random(4);
  for (int i = 0; i < 400; ++i) {
    ScheduleOptions o = random_schedule(random);
    if (o.cu_q.empty() && random() % 2) {  // packed, with any schedule
      const int64_t n = static_cast<int64_t>(random() % 6);
      o.batch = 1;
      o.key_lengths.clear();
      o.cu_q = o.cu_k = {0};
      for (int64_t s = 0; s < n; ++s) {
        o.cu_q.push_back(o.cu_q.back() + static_cast<int32_t>(random() % 3 ? random() % 300 : 128 * (random() % 3)));
        o.cu_k.push_back(o.cu_k.back() + static_cast<int32_t>(random() % 300));
      }
      o.tq = o.cu_q.back() + static_cast<int64_t>(random() % 2);
      o.tk = o.cu_k.back();
    }
    SCOPED_TRACE(testing::Message() << o);
    const ScheduleCase c(o, 5);
    const AttendParams p = c.params();
    std::vector<int> taken(static_cast<size_t>(o.batch * o.heads * o.tq), 0), want(taken);
    for (const TestSequence& s : c.sequences())
      for (int64_t h = 0; h < o.heads; ++h)
        for (int64_t q = 0; q < s.queries; ++q)
          want[static_cast<size_t>((s.batch * o.heads + h) * o.tq + s.q_token + q)] = 1;
    for (int64_t y = 0; y < cuda::AttendGrid::head_groups(p); ++y) {
      for (int64_t x = 0; x < cuda::AttendGrid::places(p); ++x) {
        cuda::RowItem item;
        if (!cuda::AttendGrid::open(p, x, y, item)) continue;
        ASSERT_LE(item.rows, cuda::kBlockRows);
        for (int32_t r = 0; r < item.rows; ++r) {
          ASSERT_LT(item.query_of(r), item.group.q_end);
          const int64_t at = (item.seq.batch * o.heads + item.head_of(r)) * o.tq + item.seq.q_token + item.query_of(r);
          ++taken[static_cast<size_t>(at)];
        }
      }
    }
    ASSERT_EQ(taken, want);
  }
}

}  // namespace
}  // namespace attn
