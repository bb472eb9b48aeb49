// The CUDA token-aware pooling kernels on the host, against the definition in double.
#include "cuda/smxx/tap_pool.h"
#include "../cpp/tap_case.h"
#include "simt/pool_check.h"

namespace attn {
namespace {

template <class E> void run(TapCase<E>& c, simt::Order order = simt::Order::forward) {
  using T = PoolElement<E>;
  const cuda::WideCall<TapPoolParams> f = cuda::wide_call(c.forward());
  ASSERT_TRUE(f.wide || !c.o.whole);
  simt::launch<cuda::TapForward<T>>(f, order);
  const cuda::WideCall<TapPoolBackwardParams> b = cuda::wide_backward_call(c.backward());
  simt::launch<cuda::TapGradient<T>>(b, order);
  simt::launch<cuda::TapWeightGradient<T>>(b, order);
}

template <class E> class SimtTapPool : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtTapPool, Elements);

TYPED_TEST(SimtTapPool, MatchesTheDefinition) {
  int number = 0;
  for (const TapOptions& o : tap_calls()) {
    SCOPED_TRACE(number++);
    TapCase<TypeParam> c(o);
    run(c);
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

TYPED_TEST(SimtTapPool, TheOrderOfThreadsDoesNotMatter) {
  TapCase<TypeParam> a(TapOptions{}), b = a;
  run(a);
  run(b, simt::Order::mixed);
  EXPECT_TRUE(same_bits(a.out, b.out));
  EXPECT_TRUE(same_bits(a.dx, b.dx));
  EXPECT_TRUE(same_bits(a.dweights, b.dweights));
}

TEST(SimtTapPool, NoImageAndNoChannels) {
  for (const int64_t channels : {0, 8}) {
    TapOptions o;
    o.channels = channels;
    if (channels) o.batch = 0;
    TapCase<F32> c(o);
    run(c);
    for (size_t i = 0; i < c.dweights.data.size(); ++i) ASSERT_EQ(c.dweights[i], 0);
  }
}

}  // namespace
}  // namespace attn
