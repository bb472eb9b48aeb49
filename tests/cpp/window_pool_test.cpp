#include "window_case.h"

namespace attn {
namespace {

template <class E> class WindowPool : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(WindowPool, Elements);

TYPED_TEST(WindowPool, MatchesTheDefinition) {
  int number = 0;
  for (const WindowOptions& o : window_calls()) {
    SCOPED_TRACE(number++);
    WindowCase<TypeParam> c(o);
    cpu::window_pool_forward(c.forward());
    cpu::window_pool_backward(c.backward());
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace attn
