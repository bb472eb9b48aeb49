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

// Results that don't fit into the cache are written around it: rows of whole vectors from registers, others by way of a
// row in the cache.
TYPED_TEST(QueryPool, LargeResults) {
  using T = typename TypeParam::type;
  QueryPoolOptions o;
  o.heads = 2;
  o.queries = 43;
  o.dim_v = 208;
  o.shared = true;
  const int64_t row = o.heads * o.queries * o.dim_v * int64_t{sizeof(T)};
  o.lengths.assign((16 << 20) / row + 1, 3);
  std::vector<T> memory;
  for (int64_t offset : {0, 1}) {
    SCOPED_TRACE(offset);
    QueryPoolCase<TypeParam> c(o, 1);
    QueryPoolParams p = c.forward();
    memory = c.out.data;
    memory.resize(memory.size() + 64 / sizeof(T) + 1);
    const uintptr_t past = reinterpret_cast<uintptr_t>(memory.data()) % 64;
    T* out = memory.data() + (past ? 64 - past : 0) / sizeof(T) + offset;
    std::fill(memory.begin(), memory.end(), TypeParam::put(std::nan("")));
    p.out = out;
    cpu::query_pool_forward(p);
    std::copy(out, out + c.out.data.size(), c.out.data.begin());
    c.check_forward();
  }
}

}  // namespace
}  // namespace attn
