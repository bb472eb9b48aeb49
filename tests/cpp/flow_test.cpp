// The CPU kernels of flow attention against the definition in double.
#include "flow_case.h"

namespace attn {
namespace {

// Operands of products are rounded to E where a CPU multiplies bf16.
template <class E>
constexpr double kProductEps = E::dtype == DType::f64    ? 1e-12
                               : E::dtype == DType::bf16 ? 0.006
                                                         : 2e-6;

// There the features of bf16 tensors are rounded for sums and dots too: a conserved flow has four of them as factors.
template <class E> constexpr double kFeatureEps = E::dtype == DType::bf16 ? 0.008 : 0;

// Of the largest gradient: beside the rounding of operands and of the result that they start from, sums over all
// tokens that cancel.
template <class E>
constexpr double kGradient = E::dtype == DType::f64    ? 1e-10
                             : E::dtype == DType::bf16 ? 0.04
                             : E::dtype == DType::f16  ? 2e-3
                                                       : 2e-5;

template <class E> class Flow : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(Flow, Elements);

TYPED_TEST(Flow, ForwardAndBackwardMatchTheDefinition) {
  for (bool causal : {false, true}) {
    uint32_t seed = 1;
    for (const FlowOptions& o : flow_calls(causal)) {
      SCOPED_TRACE(testing::Message() << o);
      FlowCase<TypeParam> c(o, ++seed);
      cpu::flow_forward(c.params());
      c.check_forward(kProductEps<TypeParam>, true, kFeatureEps<TypeParam>);
      cpu::flow_backward(c.backward());
      c.check_backward(kGradient<TypeParam>, true, kFeatureEps<TypeParam>);
    }
  }
}

TYPED_TEST(Flow, StepsGoOnFromAState) {
  for (FlowOptions o : {FlowOptions{.batch = 2, .heads = 4, .heads_kv = 2, .tq = 9, .dim = 64, .dim_v = 96},
                        FlowOptions{.tq = 8, .dim = 6, .dim_v = 5, .rules = {.eps = 0, .clamp = 1e9}}}) {
    o.tk = o.tq;
    o.rules.causal = true;
    for (int64_t from : {0, 5}) {
      SCOPED_TRACE(testing::Message() << o << " from " << from);
      FlowCase<TypeParam> c(o, 9), whole = c;
      cpu::flow_forward(whole.params());
      FlowParams first = c.params();
      first.tq = first.tk = from;
      if (from) cpu::flow_forward(first);
      step_on(c, from, [](const FlowStepParams& p) { cpu::flow_step(p); });
      c.sinks = whole.sinks, c.sources = whole.sources;
      c.check_forward(kProductEps<TypeParam>, true, kFeatureEps<TypeParam>);
    }
  }
}

}  // namespace
}  // namespace attn
