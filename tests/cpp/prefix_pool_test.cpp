// Prefix-softmax pooling on the CPU against the definition.
#include "prefix_case.h"

namespace attn {
namespace {

template <class E> class PrefixPool : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(PrefixPool, Elements);

TYPED_TEST(PrefixPool, MatchesTheDefinition) {
  for (const PrefixOptions& o : prefix_calls()) {
    SCOPED_TRACE(testing::Message() << o);
    PrefixCase<TypeParam> c(o);
    cpu::prefix_pool_forward(c.forward());
    cpu::prefix_pool_backward(c.backward());
    c.check(true);
    if (this->HasFailure()) return;
  }
}

}  // namespace
}  // namespace attn
