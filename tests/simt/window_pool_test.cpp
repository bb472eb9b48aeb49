// The CUDA window pooling kernels on the host, against the definition in double.
#include "cuda/smxx/window_pool.h"
#include "../cpp/window_case.h"
#include "simt/pool_check.h"

namespace attn {
namespace {

template <class E> void run(WindowCase<E>& c, simt::Order order = simt::Order::forward) {
  using T = PoolElement<E>;
  const cuda::WideCall<WindowPoolParams> f = cuda::wide_call(c.forward());
  ASSERT_TRUE(f.wide || !c.o.whole);
  simt::launch<cuda::WindowPool<T>>(f, order);
  simt::launch<cuda::WindowGradient<T>>(cuda::wide_backward_call(c.backward()), order);
}

template <class E> class SimtWindowPool : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtWindowPool, Elements);

TYPED_TEST(SimtWindowPool, MatchesTheDefinition) {
  int number = 0;
  for (const WindowOptions& o : window_calls()) {
    SCOPED_TRACE(number++);
    WindowCase<TypeParam> c(o);
    run(c);
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

TYPED_TEST(SimtWindowPool, NeitherTheBatchNorTheOrderOfThreadsMatters) {
  for (const bool mean : {false, true}) {
    WindowOptions o;
    o.mean = mean;
    o.window = 5;
    o.tokens = 50;
    WindowCase<TypeParam> a(o), b = a;
    run(a);
    run(b, simt::Order::mixed);
    EXPECT_TRUE(same_bits(a.out, b.out));
    EXPECT_TRUE(same_bits(a.dx, b.dx));
    o.batch = 1;
    WindowCase<TypeParam> alone(o);
    const int64_t row = a.x.tokens * a.x.pitch;
    std::copy(a.x.data.begin() + row, a.x.data.end(), alone.x.data.begin());
    std::copy(a.dout.data.begin() + row, a.dout.data.end(), alone.dout.data.begin());
    run(alone);
    EXPECT_TRUE(std::equal(alone.out.data.begin(), alone.out.data.end(), a.out.data.end() - alone.out.data.size()));
    EXPECT_TRUE(std::equal(alone.dx.data.begin(), alone.dx.data.end(), a.dx.data.end() - alone.dx.data.size()));
  }
}

TEST(SimtWindowPool, NansWin) {
  WindowOptions o;
  o.batch = 1;
  o.tokens = 9;
  o.channels = 1;
  WindowCase<F32> c(o);
  c.x.at(0, 4, 0) = std::nanf("");
  run(c);
  for (int64_t t = 0; t < 9; ++t) EXPECT_EQ(std::isnan(c.out[t]), t >= 3 && t <= 5) << t;
}

// On a GPU nobody has looked at cu_seqlens: anything may come out, but nothing outside the tensors is touched.
TEST(SimtWindowPool, BoundsMayHoldAnything) {
  WindowOptions o;
  o.pack({40, 20, 10});
  for (const auto& cu : {std::vector<int32_t>{-5, 50, 10, INT32_MAX}, {INT32_MIN, 73, 0, -1}, {90, 80, 70, 60}}) {
    WindowCase<F32> c(o);
    c.sequences.cu = cu;
    run(c);
  }
}

}  // namespace
}  // namespace attn
