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
