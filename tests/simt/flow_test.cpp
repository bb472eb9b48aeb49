// The CUDA kernels of flow attention on the host, against the definition in double that the CPU's are tested with.
#include "../cpp/flow_case.h"

#include "cuda/element.h"
#include "cuda/sm80/flow_passes.h"
#include "cuda/smxx/sum_groups.h"

namespace attn {
namespace {

template <class E> using DeviceElement = cuda::Element<E::dtype>;
// Operands of products are rounded to tf32 for bf16 and f16.
template <class E> constexpr double kProductEps = E::dtype == DType::f32 ? 2e-6 : 1.1e-3;

// Scratch memory starts as NaN.
struct Scratch {
  std::vector<float> memory;
  cuda::ScratchPieces pieces;
  explicit Scratch(int64_t n)
      : memory(static_cast<size_t>(n), std::numeric_limits<float>::quiet_NaN()), pieces(memory.data()) {}
};

template <class E> void run_forward(const FlowParams& p, simt::Order order = simt::Order::forward) {
  Scratch scratch(cuda::flow_scratch(p));
  const cuda::FlowWork w = cuda::flow_work(p, scratch.pieces);
  cuda::flow_forward_passes<DeviceElement<E>>(
      w, [&](auto kernel, const auto& params) { simt::launch<decltype(kernel)>(params, order); });
}

template <class E> void run_backward(const FlowBackwardParams& b, simt::Order order = simt::Order::forward) {
  Scratch scratch(cuda::flow_backward_scratch(b));
  const cuda::FlowGradWork w = cuda::flow_grad_work(b, scratch.pieces);
  cuda::flow_backward_passes<DeviceElement<E>>(
      w, [&](auto kernel, const auto& params) { simt::launch<decltype(kernel)>(params, order); });
}

template <class E> void check(const FlowOptions& o, uint32_t seed = 1) {
  SCOPED_TRACE(testing::Message() << o);
  FlowCase<E> c(o, seed);
  run_forward<E>(c.params());
  c.check_forward(kProductEps<E>, false);
}

template <class E> class SimtFlow : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtFlow, Elements);

TYPED_TEST(SimtFlow, ForwardMatchesTheDefinition) {
  uint32_t seed = 1;
  for (const FlowOptions& o : flow_calls(false)) check<TypeParam>(o, ++seed);
}

// Of the largest gradient, as in the CPU's test.
template <class E>
constexpr double kGradient = E::dtype == DType::f32    ? 2e-5
                             : E::dtype == DType::bf16 ? 0.02
                                                       : 4e-3;

template <class E> void zero_rows(TestTensor<E>& x) {
  for (int64_t b = 0; b < x.batch; ++b)
    for (int64_t h = 0; h < x.heads; ++h)
      for (int64_t t = 0; t < x.tokens; ++t)
        for (int64_t d = 0; d < x.dim; ++d) x.at(b, h, t, d) = E::put(0);
}

template <class E> void check_backward(bool causal) {
  uint32_t seed = causal ? 50 : 1;
  for (const FlowOptions& o : flow_calls(causal)) {
    SCOPED_TRACE(testing::Message() << o);
    FlowCase<E> c(o, ++seed);
    // Callers zero the gradients where a sequence may have sinks or sources only.
    const bool zeroed = o.tq == 0 || o.tk == 0 || o.one_mask_only;
    for (auto* x : {&c.dq, &c.dk, &c.dv})
      if (zeroed) zero_rows(*x);
    run_forward<E>(c.params());
    run_backward<E>(c.backward(), simt::Order::mixed);
    c.check_backward(kGradient<E>, zeroed);
  }
}

TYPED_TEST(SimtFlow, BackwardMatchesTheDefinition) { check_backward<TypeParam>(false); }

TYPED_TEST(SimtFlow, SumsOverGroups) {
  TestTensor<TypeParam> x(2, 6, 5, 9, false), out(2, 2, 5, 9, true);
  std::mt19937 random(8);
  x.randomize(random);
  simt::launch<cuda::SumGroups<DeviceElement<TypeParam>>>({TypeParam::dtype, 2, 2, 3, 5, 9, x.view(), out.view()});
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t t = 0; t < 5; ++t) {
        for (int64_t d = 0; d < 9; ++d) {
          const double want = x.get(b, 3 * h, t, d) + x.get(b, 3 * h + 1, t, d) + x.get(b, 3 * h + 2, t, d);
          ASSERT_NEAR(out.get(b, h, t, d), want, TypeParam::eps * (std::abs(want) + 1));
        }
      }
    }
  }
}

TYPED_TEST(SimtFlow, CausalForwardMatchesTheDefinition) {
  uint32_t seed = 50;
  for (const FlowOptions& o : flow_calls(true)) check<TypeParam>(o, ++seed);
}

TYPED_TEST(SimtFlow, CausalBackwardMatchesTheDefinition) { check_backward<TypeParam>(true); }

// Steps from nothing, and from the state of a causal call over the first tokens.
TYPED_TEST(SimtFlow, StepsGoOnFromAState) {
  using T = DeviceElement<TypeParam>;
  for (FlowOptions o : {FlowOptions{.batch = 2, .heads = 4, .heads_kv = 2, .tq = 9, .dim = 64, .dim_v = 96},
                        FlowOptions{.tq = 8, .dim = 6, .dim_v = 5, .rules = {.eps = 0, .clamp = 1e9}},
                        FlowOptions{.tq = 7, .dim = 200, .dim_v = 1}}) {
    o.tk = o.tq;
    o.rules.causal = true;
    for (int64_t from : {0, 5}) {
      SCOPED_TRACE(testing::Message() << o << " from " << from);
      FlowCase<TypeParam> c(o, 9), whole = c;
      run_forward<TypeParam>(whole.params());
      FlowParams first = c.params();
      first.tq = first.tk = from;
      if (from) run_forward<TypeParam>(first);
      step_on(c, from, [](const FlowStepParams& p) { simt::launch<cuda::FlowStep<T>>(p, simt::Order::mixed); });
      c.sinks = whole.sinks, c.sources = whole.sources;
      c.check_forward(kProductEps<TypeParam>, false);
    }
  }
}

TYPED_TEST(SimtFlow, TheOrderOfThreadsDoesNotMatter) {
  for (bool causal : {false, true}) {
    FlowOptions o{.heads = 2, .tq = 300, .tk = 300, .dim = 20, .dim_v = 70, .keep = 0.9};
    o.rules.causal = causal;
    FlowCase<TypeParam> a(o, 4), b = a;
    run_forward<TypeParam>(a.params());
    run_forward<TypeParam>(b.params(), simt::Order::mixed);
    EXPECT_EQ(0, std::memcmp(a.out.data.data(), b.out.data.data(), a.out.data.size() * sizeof(a.out.data[0])));
    EXPECT_EQ(0, std::memcmp(a.sinks.data(), b.sinks.data(), a.sinks.size() * sizeof(float)));
    run_backward<TypeParam>(a.backward());
    run_backward<TypeParam>(b.backward(), simt::Order::mixed);
    for (auto x : {&FlowCase<TypeParam>::dq, &FlowCase<TypeParam>::dk, &FlowCase<TypeParam>::dv})
      EXPECT_EQ(0, std::memcmp((a.*x).data.data(), (b.*x).data.data(), (a.*x).data.size() * sizeof((a.*x).data[0])));
  }
}

}  // namespace
}  // namespace attn
