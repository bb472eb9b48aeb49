#include "ponet_case.h"

namespace attn {
namespace {

template <class E> class Ponet : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(Ponet, Elements);

TYPED_TEST(Ponet, ForwardMatchesTheDefinition) {
  int number = 0;
  for (const PonetOptions& o : ponet_calls()) {
    SCOPED_TRACE(number++);
    PonetCase<TypeParam> c(o);
    cpu::ponet_forward(c.forward());
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace attn
