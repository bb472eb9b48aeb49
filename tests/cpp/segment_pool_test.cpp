#include "segment_case.h"

namespace attn {
namespace {

template <class E> class SegmentPool : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(SegmentPool, Elements);

TYPED_TEST(SegmentPool, MatchesTheDefinition) {
  int number = 0;
  for (const SegmentOptions& o : segment_calls()) {
    SCOPED_TRACE(number++);
    SegmentCase<TypeParam> c(o);
    cpu::segment_pool_forward(c.forward());
    cpu::segment_pool_backward(c.backward());
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

// Which token has each maximum, and its gradient from that alone: x is gone by then.
template <class E> void check_tokens(const SegmentOptions& o) {
  SegmentCase<E> c(o);
  std::vector<int32_t> token(c.out.data.size(), 77);
  SegmentPoolParams p = c.forward();
  p.token = token.data();
  cpu::segment_pool_forward(p);
  SegmentPoolBackwardParams b = c.backward();
  b.forward.token = token.data();
  b.forward.x = {nullptr, 0, 0};
  cpu::segment_pool_backward(b);
  c.check();
}

TYPED_TEST(SegmentPool, MaximaAreNoted) {
  int number = 0;
  for (const SegmentOptions& o : segment_calls()) {
    SCOPED_TRACE(number++);
    if (o.reduce != PoolReduce::max || o.tie != TieRule::first) continue;
    check_tokens<TypeParam>(o);
    if (testing::Test::HasFatalFailure()) return;
  }
  SegmentOptions o;
  o.lengths = {5000, 0, 1, 700};
  o.tokens = 5701;
  for (const Values values : {Values::normal, Values::ties}) {
    o.values = values;
    for (const bool masked : {false, true}) {
      o.masked = masked;
      check_tokens<TypeParam>(o);
    }
  }
}

TYPED_TEST(SegmentPool, LongSegments) {
  SegmentOptions o;
  o.lengths = {5000, 0, 1, 700};
  o.tokens = 5701;
  for (const auto reduce : {PoolReduce::max, PoolReduce::mean}) {
    o.reduce = reduce;
    SegmentCase<TypeParam> c(o);
    cpu::segment_pool_forward(c.forward());
    cpu::segment_pool_backward(c.backward());
    c.check();
  }
}

}  // namespace
}  // namespace attn
