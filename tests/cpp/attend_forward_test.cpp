// Attention forward against the textbook in double.
#include <gtest/gtest.h>

#include "attend_edges.h"
#include "attn/cpu.h"
#include "attn/parallel.h"

namespace attn {
namespace {

// Largest error allowed, as a share of 1/2 + |value|: outputs are weighted means of N(0, 1) values. The rounding of a
// logit is proportional to its size, hence `logits`, their standard deviation where it is above 1.
template <class E> constexpr double kTolerance = 0;
template <> constexpr double kTolerance<F32> = 4e-6;
template <> constexpr double kTolerance<F64> = 1e-13;
template <> constexpr double kTolerance<BF16> = 0.008;  // the weights are bf16 too where the CPU multiplies bf16
template <> constexpr double kTolerance<F16> = 0.001;
template <class E> constexpr double kLseTolerance = E::dtype == DType::f64 ? 1e-13 : 4e-6;

template <class E> void run_and_check(AttendCase<E>& c) {
  const AttendParams p = c.params();
  const double logits = std::max(1., c.scale * std::sqrt(c.o.dim));
  cpu::attend_forward(p);
  Expected out, lse;
  c.expect_forward(out, lse);
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t t = 0; t < p.tq; ++t) {
        if (lse.known[lse.row(b, h, t)]) {
          const double want = *lse.at(b, h, t), got = c.lse[lse.row(b, h, t)];
          if (std::isinf(want)) ASSERT_EQ(got, want) << "lse of " << b << " " << h << " " << t;
          else
            ASSERT_NEAR(got, want, logits * kLseTolerance<E> * (1 + std::abs(want)))
                << "lse of " << b << " " << h << " " << t;
        }
        if (!out.known[out.row(b, h, t)]) continue;
        const double gate = std::abs(c.gate_of(b, h, t));
        for (int64_t d = 0; d < p.dim_v; ++d) {
          const double want = out.at(b, h, t)[d];
          ASSERT_NEAR(c.out.get(b, h, t, d), want, logits * kTolerance<E> * (0.5 * gate + std::abs(want)))
              << "out of " << b << " " << h << " " << t << " feature " << d;
        }
      }
    }
  }
}

template <class E> void check(const AttendOptions& o, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  AttendCase<E> c(o, seed);
  run_and_check(c);
}

template <class E> class AttendForward : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(AttendForward, Elements);

TYPED_TEST(AttendForward, RandomCalls) {
  std::mt19937 random(1);
  for (int i = 0; i < kRandomCalls && !this->HasFatalFailure(); ++i)
    check<TypeParam>(random_attend(random), static_cast<uint32_t>(i));
}

// Sizes around the kernels' own: lanes, dot blocks, panels, row tiles of 64 and 128, key tiles of 96 and 192.
TYPED_TEST(AttendForward, SizesAroundBlockSizes) {
  for (int64_t tq : {1, 8, 15, 33, 128, 130}) {
    for (int64_t tk : {1, 11, 95, 97, 192, 385}) {
      AttendOptions o = one_head(tq, tk);
      o.schedule.causal = (tq + tk) % 2;
      check<TypeParam>(o, 3);
    }
  }
  for (int64_t dim : {1, 2, 3, 8, 15, 17, 48, 65, 128, 160, 256}) {
    AttendOptions o;
    o.schedule.tq = 20;
    o.schedule.tk = 200;
    o.dim = dim;
    o.dim_v = 264 - dim;
    check<TypeParam>(o, 4);
  }
}

// One head attends from more queries than half a row tile holds, so tiles are full size.
TYPED_TEST(AttendForward, ManyQueries) {
  AttendOptions o = one_head(1100, 1100);
  o.schedule.causal = true;
  o.schedule.left = 70;
  o.dim = o.dim_v = 16;
  check<TypeParam>(o, 5);
}

// Few queries: the keys are split over items and merged.
TYPED_TEST(AttendForward, KeysAreSplitForFewQueries) {
  for (int64_t tk : {4096, 4097, 9000}) {
    AttendOptions o;
    o.schedule.batch = 2;
    o.schedule.heads = 4;
    o.schedule.heads_kv = 2;
    o.schedule.tq = 3;
    o.schedule.tk = tk;
    o.schedule.causal = true;
    o.dim = o.dim_v = 8;
    o.sinks = o.key_weights = tk == 9000;
    check<TypeParam>(o, 6);
    o.schedule.key_lengths = {4100, 17};  // most splits of the second sequence are empty
    if (tk >= 4100) check<TypeParam>(o, 7);
    o.page = 256;
    if (tk >= 4100) check<TypeParam>(o, 8);
    set_pool_threads(1);  // enough items for each without every head being one
    if (tk >= 4100) check<TypeParam>(o, 8);
    set_pool_threads(0);
  }
}

TYPED_TEST(AttendForward, PagedKeys) {
  std::mt19937 random(2);
  int done = 0;
  for (int i = 0; done < kRandomCalls / 3 && !this->HasFatalFailure(); ++i) {
    AttendOptions o = random_attend(random);
    if (!o.schedule.cu_q.empty() || o.schedule.tk == 0) continue;
    o.page = std::initializer_list<int64_t>{1, 16, 64, 1000}.begin()[random() % 4];
    check<TypeParam>(o, static_cast<uint32_t>(i));
    ++done;
  }
}

// Tiles gather runs of keys from scattered blocks; a window or the last key cuts the first and last run anywhere, also
// between two keys that are multiplied as a pair.
TYPED_TEST(AttendForward, BlocksCutAnywhere) {
  for (int64_t block : {32, 64, 96}) {
    for (int64_t cut = 0; cut < 4; ++cut) {
      AttendOptions o;
      o.schedule.kind = ScheduleKind::layout;
      o.schedule.tq = 130;
      o.schedule.tk = 700;
      o.schedule.block_q = 64;
      o.schedule.block_k = block;
      o.schedule.left = 6 * block + cut;
      o.schedule.causal = cut % 2;
      o.schedule.full_list = cut > 1;
      o.dim = 64;
      o.dim_v = 48;
      check<TypeParam>(o, static_cast<uint32_t>(block + cut));
    }
  }
}

TYPED_TEST(AttendForward, EmptyInputs) {
  for (const AttendOptions& o : empty_inputs()) check<TypeParam>(o, 9);
}

// Logits of +-200 and more: no overflow, and the row of the largest key wins.
TYPED_TEST(AttendForward, LargeLogits) {
  AttendOptions o;
  o.schedule.tk = 300;
  o.scale = 40;
  AttendCase<TypeParam> c(o, 10);
  const AttendParams p = c.params();
  cpu::attend_forward(p);
  Expected out, lse;
  c.expect_forward(out, lse);
  // The dot product's own rounding is multiplied by the scale, so only the finite and the close are asked for.
  for (size_t r = 0; r < c.rows(); ++r) { ASSERT_NEAR(c.lse[r], lse.value[r], 1e-5 * std::abs(lse.value[r]) + 1e-3); }
  for (int64_t h = 0; h < p.heads; ++h)
    for (int64_t t = 0; t < p.tq; ++t)
      for (int64_t d = 0; d < p.dim_v; ++d) ASSERT_NEAR(c.out.get(0, h, t, d), out.at(0, h, t)[d], 0.03);
}

// The same bits whatever the number of threads and whatever else is in the batch.
TYPED_TEST(AttendForward, ThreadsAndBatchDoNotMatter) {
  std::mt19937 random(3);
  for (int i = 0; i < 12; ++i) {
    const AttendOptions o = random_attend(random);
    SCOPED_TRACE(testing::Message() << o);
    AttendCase<TypeParam> c(o, static_cast<uint32_t>(i)), other(o, static_cast<uint32_t>(i));
    set_pool_threads(1);
    cpu::attend_forward(c.params());
    set_pool_threads(5);
    cpu::attend_forward(other.params());
    set_pool_threads(0);
    ASSERT_EQ(0, std::memcmp(c.out.data.data(), other.out.data.data(), c.out.data.size() * sizeof(c.out.data[0])));
    ASSERT_EQ(0, std::memcmp(c.lse.data(), other.lse.data(), c.lse.size() * sizeof(c.lse[0])));
  }
  AttendOptions o;
  o.schedule.batch = 3;
  o.schedule.tq = 70;
  o.schedule.tk = 210;
  AttendCase<TypeParam> c(o, 11);
  cpu::attend_forward(c.params());
  const auto together = c.out.data;
  AttendParams p = c.params();
  p.batch = 1;
  p.q.data = static_cast<char*>(p.q.data) + 2 * p.q.batch * sizeof(typename TypeParam::type);
  p.k.data = static_cast<char*>(p.k.data) + 2 * p.k.batch * sizeof(typename TypeParam::type);
  p.v.data = static_cast<char*>(p.v.data) + 2 * p.v.batch * sizeof(typename TypeParam::type);
  cpu::attend_forward(p);
  const size_t entry = static_cast<size_t>(p.out.batch) * sizeof(together[0]);
  ASSERT_EQ(0, std::memcmp(c.out.data.data(), together.data() + 2 * p.out.batch, entry));
}

}  // namespace
}  // namespace attn
