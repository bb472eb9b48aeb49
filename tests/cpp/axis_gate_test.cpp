#include "axis_gate_case.h"

namespace attn {
namespace {

template <class E> void run(AxisGateCase<E>& c) {
  cpu::axis_gate_forward(c.forward());
  cpu::axis_gate_backward(c.backward());
}

template <class E> class AxisGate : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(AxisGate, Elements);

TYPED_TEST(AxisGate, MatchesTheFormula) {
  for (const AxisGateSizes& s : kAxisGateSizes) {
    SCOPED_TRACE(testing::Message() << s.batch << " x " << s.channels << " x " << s.time);
    AxisGateCase<TypeParam> c(s.batch, s.channels, s.time, s.gap);
    run(c);
    c.check();
  }
}

TYPED_TEST(AxisGate, OnlyWhatIsWanted) {
  for (int wanted = 0; wanted < 8; ++wanted) {
    AxisGateCase<TypeParam> c(2, 9, 21, 1);
    for (int i = 0; i < 3; ++i) c.want[i] = wanted >> i & 1;
    run(c);
    c.check();
  }
}

}  // namespace
}  // namespace attn
