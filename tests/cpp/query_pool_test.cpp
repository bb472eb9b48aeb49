#include "query_pool_case.h"

namespace attn {
namespace {

template <class E> class QueryPool : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(QueryPool, Elements);

TYPED_TEST(QueryPool, MatchesTheFormulas) {
  std::mt19937 random(5);
  uint32_t seed = 0;
  for (const QueryPoolOptions& o : query_pool_calls(random, 60)) {
    SCOPED_TRACE(describe(o));
    QueryPoolCase<TypeParam> c(o, ++seed);
    cpu::query_pool_forward(c.forward());
    c.check_forward();
    cpu::query_pool_backward(c.backward());
    c.check_backward();
    if (this->HasFatalFailure()) return;
  }
}

TYPED_TEST(QueryPool, OnlyWhatIsWanted) {
  for (int wanted = 0; wanted < 8; ++wanted) {
    for (int64_t queries : {3, 20}) {
      QueryPoolOptions o;
      o.queries = queries;
      QueryPoolCase<TypeParam> c(o, 1);
      for (int i = 0; i < 3; ++i) c.want[i] = wanted >> i & 1;
      cpu::query_pool_forward(c.forward());
      cpu::query_pool_backward(c.backward());
      c.check_backward();
    }
  }
}

}  // namespace
}  // namespace attn
