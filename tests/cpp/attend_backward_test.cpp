// Attention backward against the textbook gradients in double.
#include <gtest/gtest.h>

#include "attend_backward_case.h"
#include "attend_edges.h"
#include "attn/cpu.h"
#include "attn/parallel.h"

namespace attn {
namespace {

template <class E> void check(const AttendOptions& o, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  AttendCase<E> c(o, seed);
  cpu::attend_forward(c.params());
  GradientTensors<E> g(c.params());
  const AttendBackwardParams b = backward_params(c, g);
  cpu::attend_backward(b);
  compare_gradients(c, b, g);
}

AttendOptions random_trained(std::mt19937& random) { return trained(random_attend(random)); }

template <class E> class AttendBackward : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(AttendBackward, Elements);

TYPED_TEST(AttendBackward, RandomCalls) {
  std::mt19937 random(1);
  for (int i = 0; i < kRandomCalls && !this->HasFatalFailure(); ++i)
    check<TypeParam>(random_trained(random), static_cast<uint32_t>(i));
}

TYPED_TEST(AttendBackward, SizesAroundBlockSizes) {
  for (int64_t tq : {1, 8, 15, 33, 128, 130}) {
    for (int64_t tk : {1, 11, 63, 65, 128, 257}) {
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

TYPED_TEST(AttendBackward, ManyQueriesAndLongSelections) {
  AttendOptions o = one_head(1100, 1100);
  o.schedule.causal = true;
  o.schedule.left = 70;
  o.dim = o.dim_v = 16;
  check<TypeParam>(o, 5);
  o.schedule.kind = ScheduleKind::gathered;  // several key ranges of 2048
  o.schedule.tq = 100;
  o.schedule.tk = 5000;
  o.schedule.block_k = 2;
  o.schedule.density = 0.1;
  o.schedule.selection_heads = 1;
  check<TypeParam>(o, 6);
}

TYPED_TEST(AttendBackward, EmptyInputs) {
  for (const AttendOptions& o : empty_inputs()) check<TypeParam>(o, 9);
}

// What is not asked for is not written, and what is does not depend on it.
TYPED_TEST(AttendBackward, PartsThatAreNotWanted) {
  std::mt19937 random(4);
  for (int i = 0; i < 10; ++i) {
    const AttendOptions o = random_trained(random);
    SCOPED_TRACE(testing::Message() << o);
    AttendCase<TypeParam> c(o, static_cast<uint32_t>(i));
    cpu::attend_forward(c.params());
    GradientTensors<TypeParam> all(c.params()), queries(c.params()), keys(c.params());
    cpu::attend_backward(backward_params(c, all));
    AttendBackwardParams b = backward_params(c, queries);
    b.dk.data = b.dv.data = b.dkey_log_weight = nullptr;
    cpu::attend_backward(b);
    queries.dk = all.dk;
    queries.dv = all.dv;
    queries.dkey_weight = all.dkey_weight;
    ASSERT_TRUE(queries.same_bits(all)) << "dq alone";
    b = backward_params(c, keys);
    b.dq.data = nullptr;
    b.dhead_gate = nullptr;
    cpu::attend_backward(b);
    keys.dq = all.dq;
    keys.dgate = all.dgate;
    ASSERT_TRUE(keys.same_bits(all)) << "dk and dv alone";
  }
}

TYPED_TEST(AttendBackward, ThreadsDoNotMatter) {
  std::mt19937 random(3);
  for (int i = 0; i < 12; ++i) {
    const AttendOptions o = random_trained(random);
    SCOPED_TRACE(testing::Message() << o);
    AttendCase<TypeParam> c(o, static_cast<uint32_t>(i));
    cpu::attend_forward(c.params());
    GradientTensors<TypeParam> alone(c.params()), many(c.params());
    set_pool_threads(1);
    cpu::attend_backward(backward_params(c, alone));
    set_pool_threads(5);
    cpu::attend_backward(backward_params(c, many));
    set_pool_threads(0);
    ASSERT_TRUE(alone.same_bits(many));
  }
}

// PyTorch may run every worker on one thread; the turns in which dQ is summed must not wait for a later worker.
TYPED_TEST(AttendBackward, WorkersMayRunOneAfterAnother) {
  AttendOptions o;
  o.schedule.tq = o.schedule.tk = 500;
  const ParallelBackend before = set_parallel_backend({[] { return 4; },
                                                       [](int workers, void (*body)(void*, int), void* context) {
                                                         for (int w = 0; w < workers; ++w) body(context, w);
                                                       }});
  check<TypeParam>(o, 12);
  set_parallel_backend(before);
}

}  // namespace
}  // namespace attn
