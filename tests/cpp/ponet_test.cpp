#include "ponet_grad_case.h"

namespace attn {
namespace {

template <class E> class Ponet : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(Ponet, Elements);

TYPED_TEST(Ponet, MatchesTheDefinition) {
  int number = 0;
  for (const PonetOptions& o : ponet_calls()) {
    SCOPED_TRACE(number);
    PonetGradCase<TypeParam> c(o, number++ % 4 < 2 ? TieRule::first : TieRule::even);
    cpu::ponet_forward(c.forward());
    c.check();
    cpu::ponet_backward(c.backward());
    c.check_gradients();
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace attn
