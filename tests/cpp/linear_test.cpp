// Linear attention on the CPU against the definition.
#include "linear_case.h"

namespace attn {
namespace {

using namespace linear_test;

template <class E> class Linear : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(Linear, Elements);

TYPED_TEST(Linear, MatchesTheDefinition) {
  for (const Options& options : cases()) {
    SCOPED_TRACE(text(options));
    Case<TypeParam> c(options);
    cpu::linear_forward(c.forward());
    cpu::linear_backward(c.backward());
    c.check();
    if (this->HasFailure()) return;
  }
}

// Past the last of packed sequences.
TYPED_TEST(Linear, UnusedTokensAreZero) {
  Case<TypeParam> c({.tq = 100, .tk = 100, .cu = {0, 30, 61}});
  cpu::linear_forward(c.forward());
  cpu::linear_backward(c.backward());
  c.check();
  for (int64_t t = 61; t < 100; ++t) {
    EXPECT_EQ(0, c.out.get(0, 1, t, 3));
    EXPECT_EQ(0, c.mass[100 + t]);
    EXPECT_EQ(0, c.dq.get(0, 1, t, 3));
    EXPECT_EQ(0, c.dk.get(0, 0, t, 3));
    EXPECT_EQ(0, c.dv.get(0, 0, t, 3));
  }
}

}  // namespace
}  // namespace attn
