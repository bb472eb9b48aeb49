#include "tap_case.h"

namespace attn {
namespace {

template <class E> class TapPool : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(TapPool, Elements);

TYPED_TEST(TapPool, MatchesTheDefinition) {
  int number = 0;
  for (const TapOptions& o : tap_calls()) {
    SCOPED_TRACE(number++);
    TapCase<TypeParam> c(o);
    cpu::tap_pool_forward(c.forward());
    cpu::tap_pool_backward(c.backward());
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace attn
