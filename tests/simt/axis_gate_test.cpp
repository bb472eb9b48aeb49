// The CUDA kernels of the axis gate on the host, against the formula in double.
#include "cuda/smxx/axis_gate.h"

#include "../cpp/axis_gate_case.h"
#include "cuda/element.h"

namespace attn {
namespace {

template <class E> void run(AxisGateCase<E>& c, simt::Order order = simt::Order::forward) {
  using T = cuda::Element<E::dtype>;
  simt::launch<cuda::AxisGateForward<T>>(c.forward(), order);
  std::vector<float> scratch(cuda::axis_gate_scratch(c.backward()), NAN);
  const cuda::AxisGateSumsParams sums = cuda::axis_gate_sums(c.backward(), scratch.data());
  simt::launch<cuda::AxisGateBackward<T>>(sums, order);
  simt::launch<cuda::AxisGateSums<T>>(sums, order);
}

template <class E> class SimtAxisGate : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtAxisGate, Elements);

TYPED_TEST(SimtAxisGate, MatchesTheFormula) {
  for (const AxisGateSizes& s : kAxisGateSizes) {
    SCOPED_TRACE(testing::Message() << s.batch << " x " << s.channels << " x " << s.time);
    AxisGateCase<TypeParam> c(s.batch, s.channels, s.time, s.gap);
    run(c);
    c.check();
  }
}

TYPED_TEST(SimtAxisGate, OnlyWhatIsWanted) {
  for (int wanted = 0; wanted < 8; ++wanted) {
    AxisGateCase<TypeParam> c(2, 9, 21, 1);
    for (int i = 0; i < 3; ++i) c.want[i] = wanted >> i & 1;
    run(c);
    c.check();
  }
}

// The bits of an entry's result, too, whatever else is in the batch.
TYPED_TEST(SimtAxisGate, NeitherOrderNorBatchMatters) {
  AxisGateCase<TypeParam> a(3, 70, 300, 4), b = a, alone(1, 70, 300, 4);
  run(a);
  run(b, simt::Order::mixed);
  auto entry = [](const auto& values, int64_t n) {
    return std::vector(values.begin() + n * values.size() / 3, values.begin() + (n + 1) * values.size() / 3);
  };
  alone.x = entry(a.x, 1), alone.dout = entry(a.dout, 1);
  alone.channel = entry(a.channel, 1), alone.time_gate = entry(a.time_gate, 1);
  run(alone);
  for (auto member : {&AxisGateCase<TypeParam>::out, &AxisGateCase<TypeParam>::dx, &AxisGateCase<TypeParam>::dchannel,
                      &AxisGateCase<TypeParam>::dtime}) {
    const auto bytes = [](const auto& values) { return values.size() * sizeof(values[0]); };
    const auto one = entry(a.*member, 1);
    EXPECT_EQ(0, std::memcmp((a.*member).data(), (b.*member).data(), bytes(a.*member)));
    EXPECT_EQ(0, std::memcmp(one.data(), (alone.*member).data(), bytes(one)));
  }
}

}  // namespace
}  // namespace attn
