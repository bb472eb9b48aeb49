// Attention backward against the textbook gradients in double.
#include <gtest/gtest.h>

#include "attend_case.h"
#include "attn/cpu.h"
#include "attn/parallel.h"

namespace attn {
namespace {

// Largest error allowed, as a share of the gradient's largest entry; kSmallest stands for a gradient that cancels to 0
// out of products <dout, v>, whose size goes with the root of dim_v.
template <class E> constexpr double kTolerance = 0;
template <> constexpr double kTolerance<F32> = 2e-5;
template <> constexpr double kTolerance<F64> = 1e-12;
template <> constexpr double kTolerance<BF16> = 0.02;
template <> constexpr double kTolerance<F16> = 0.003;

constexpr double kSmallest = 0.2;

// Gradient tensors, contiguous and full of NaN before the call.
template <class E> struct Outputs {
  using Element = typename E::type;
  std::vector<Element> dq, dk, dv;
  std::vector<float> dkey_weight, dsink, dgate;

  explicit Outputs(const AttendParams& p)
      : dq(static_cast<size_t>(p.batch * p.heads * p.tq * p.dim), E::put(std::nan(""))),
        dk(static_cast<size_t>(p.batch * p.heads_kv * p.tk * p.dim), E::put(std::nan(""))),
        dv(static_cast<size_t>(p.batch * p.heads_kv * p.tk * p.dim_v), E::put(std::nan(""))),
        dkey_weight(static_cast<size_t>(p.batch * p.heads_kv * p.tk), std::nanf("")),
        dsink(static_cast<size_t>(p.heads), std::nanf("")),
        dgate(static_cast<size_t>(p.batch * p.heads * p.tq), std::nanf("")) {}

  bool same_bits(const Outputs& other) const {
    auto same = [](const auto& x, const auto& y) {
      if (x.size() != y.size()) return false;
      return x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])) == 0;
    };
    return same(dq, other.dq) && same(dk, other.dk) && same(dv, other.dv) && same(dkey_weight, other.dkey_weight) &&
           same(dsink, other.dsink) && same(dgate, other.dgate);
  }
};

template <class E> AttendBackwardParams backward_params(AttendCase<E>& c, Outputs<E>& g) {
  AttendBackwardParams b{};
  b.forward = c.params();
  const AttendParams& p = b.forward;
  auto view = [](auto& x, int64_t heads, int64_t tokens, int64_t dim) {
    return View4{x.data(), heads * tokens * dim, tokens * dim, dim};
  };
  b.dout = c.dout.view();
  b.dlse = c.o.dlse ? c.dlse.data() : nullptr;
  b.dq = view(g.dq, p.heads, p.tq, p.dim);
  b.dk = view(g.dk, p.heads_kv, p.tk, p.dim);
  b.dv = view(g.dv, p.heads_kv, p.tk, p.dim_v);
  if (c.o.key_weights) b.dkey_log_weight = g.dkey_weight.data();
  if (c.o.sinks) b.dsink_logits = g.dsink.data();
  if (c.o.gate && !c.o.skip_gated) b.dhead_gate = g.dgate.data();
  return b;
}

template <class Get>
void compare(const char* name, Expected& want, int64_t batch, double tolerance, double smallest, Get&& get) {
  double largest = smallest;
  for (size_t r = 0; r < want.known.size(); ++r) {
    for (int64_t d = 0; want.known[r] && d < want.dim; ++d) {
      largest = std::max(largest, std::abs(want.value[r * static_cast<size_t>(want.dim) + static_cast<size_t>(d)]));
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < want.heads; ++h) {
      for (int64_t t = 0; t < want.tokens; ++t) {
        if (!want.known[want.row(b, h, t)]) continue;
        for (int64_t d = 0; d < want.dim; ++d) {
          const double x = want.at(b, h, t)[d];
          ASSERT_NEAR(get(want.row(b, h, t) * static_cast<size_t>(want.dim) + static_cast<size_t>(d)), x,
                      tolerance * largest)
              << name << " of " << b << " " << h << " " << t << " feature " << d;
        }
      }
    }
  }
}

template <class E> void check(const AttendOptions& o, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  AttendCase<E> c(o, seed);
  cpu::attend_forward(c.params());
  Outputs<E> g(c.params());
  const AttendBackwardParams b = backward_params(c, g);
  cpu::attend_backward(b);
  typename AttendCase<E>::Gradients want;
  c.expect_backward(want);
  // The forward's own rounding of a logit goes with the logit's size.
  const double tolerance = kTolerance<E> * std::max(1., c.scale * std::sqrt(o.dim));
  const int64_t batch = b.forward.batch;
  const double smallest = kSmallest * std::sqrt(o.dim_v);
  auto element = [](const auto& x) { return [&x](size_t i) { return E::get(x[i]); }; };
  auto number = [](const auto& x) { return [&x](size_t i) { return x[i]; }; };
  compare("dq", want.dq, batch, tolerance, smallest, element(g.dq));
  compare("dk", want.dk, batch, tolerance, smallest, element(g.dk));
  compare("dv", want.dv, batch, tolerance, smallest, element(g.dv));
  const double as_float = std::max(tolerance, 2e-7);  // these are float32 for every input type
  if (b.dkey_log_weight) compare("dkey_log_weight", want.dkey_weight, batch, as_float, smallest, number(g.dkey_weight));
  if (b.dsink_logits && batch > 0) compare("dsink_logits", want.dsink, 1, as_float, smallest, number(g.dsink));
  if (b.dhead_gate) compare("dhead_gate", want.dgate, batch, as_float, smallest, number(g.dgate));
}

// Per-sequence key lengths are decoding's, which has no backward.
AttendOptions random_trained(std::mt19937& random) {
  AttendOptions o = random_attend(random);
  o.schedule.key_lengths.clear();
  return o;
}

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
      AttendOptions o;
      o.schedule.heads = o.schedule.heads_kv = 1;
      o.schedule.tq = tq;
      o.schedule.tk = tk;
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
  AttendOptions o;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tq = o.schedule.tk = 1100;
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
  for (int which = 0; which < 3; ++which) {
    AttendOptions o;
    if (which == 0) o.schedule.batch = 0;
    if (which == 1) o.schedule.tq = 0;
    if (which == 2) o.schedule.tk = 0;
    check<TypeParam>(o, 9);
    o.sinks = o.key_weights = o.gate = true;
    check<TypeParam>(o, 9);
  }
}

// What is not asked for is not written, and what is does not depend on it.
TYPED_TEST(AttendBackward, PartsThatAreNotWanted) {
  std::mt19937 random(4);
  for (int i = 0; i < 10; ++i) {
    const AttendOptions o = random_trained(random);
    SCOPED_TRACE(testing::Message() << o);
    AttendCase<TypeParam> c(o, static_cast<uint32_t>(i));
    cpu::attend_forward(c.params());
    Outputs<TypeParam> all(c.params()), queries(c.params()), keys(c.params());
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
    Outputs<TypeParam> alone(c.params()), many(c.params());
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
