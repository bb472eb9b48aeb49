// The CUDA kernels of prefix-softmax pooling on the host, against the definition in double.
#include "../cpp/prefix_case.h"

#include "cuda/smxx/prefix_steps.h"
#include "simt/pool_check.h"

namespace attn {
namespace {

template <class E> void run(PrefixCase<E>& c, simt::Order order = simt::Order::forward) {
  const auto launch = [order](auto kernel, const auto& params) { simt::launch<decltype(kernel)>(params, order); };
  PoolScratch forward(cuda::prefix_pool_scratch(c.forward()));
  cuda::ScratchPieces pieces(forward.at(0));
  cuda::prefix_pool_steps<PoolElement<E>>(cuda::prefix_work(c.forward(), pieces), launch);
  PoolScratch backward(cuda::prefix_pool_backward_scratch(c.backward()));
  cuda::ScratchPieces more(backward.at(0));
  cuda::prefix_pool_backward_steps<PoolElement<E>>(cuda::prefix_grad_work(c.backward(), more), launch);
}

template <class E> class SimtPrefixPool : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtPrefixPool, Elements);

TYPED_TEST(SimtPrefixPool, MatchesTheDefinition) {
  for (const PrefixOptions& o : prefix_calls()) {
    SCOPED_TRACE(testing::Message() << o);
    PrefixCase<TypeParam> c(o);
    run(c);
    c.check(false);
    if (this->HasFailure()) return;
  }
}

template <class T> bool equal_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

TYPED_TEST(SimtPrefixPool, TheOrderOfThreadsDoesNotMatter) {
  PrefixCase<TypeParam> a({.heads = 2, .tokens = 700, .dim = 24, .left_out = 9, .gap = 0}), b = a;
  run(a);
  run(b, simt::Order::mixed);
  for (auto member : {&PrefixCase<TypeParam>::out, &PrefixCase<TypeParam>::dscore, &PrefixCase<TypeParam>::dv})
    EXPECT_TRUE(equal_bits((a.*member).data, (b.*member).data));
  EXPECT_TRUE(equal_bits(a.lse, b.lse));
}

// Nor does what isn't a number among it.
TYPED_TEST(SimtPrefixPool, TheFutureDoesNotMatter) {
  PrefixCase<TypeParam> a({.tokens = 700, .dim = 8, .gap = 0});
  for (int64_t cut : {1, 64, 300}) {
    PrefixCase<TypeParam> later = a, before = a;
    for (int64_t t = cut; t < 700; ++t) {
      later.score.at(0, 0, t, 0) = TypeParam::put(t % 2 ? NAN : INFINITY);
      for (int64_t d = 0; d < 8; ++d) later.v.at(0, 0, t, d) = TypeParam::put(NAN);
    }
    run(before);
    run(later);
    for (int64_t t = 0; t < cut; ++t) {
      for (int64_t d = 0; d < 8; ++d) ASSERT_EQ(before.out.get(0, 0, t, d), later.out.get(0, 0, t, d)) << t;
      ASSERT_EQ(before.lse[t], later.lse[t]) << t;
    }
  }
}

// A row's bits don't depend on the sequences around it.
TYPED_TEST(SimtPrefixPool, PackedIsAlone) {
  PrefixCase<TypeParam> packed({.tokens = 400, .dim = 8, .cu = {0, 130, 130, 400}, .gap = 0});
  PrefixCase<TypeParam> alone({.tokens = 270, .dim = 8, .gap = 0});
  for (int64_t t = 0; t < 270; ++t) {
    alone.score.at(0, 0, t, 0) = packed.score.at(0, 0, 130 + t, 0);
    alone.dlse[t] = packed.dlse[130 + t];
    for (int64_t d = 0; d < 8; ++d) {
      alone.v.at(0, 0, t, d) = packed.v.at(0, 0, 130 + t, d);
      alone.dout.at(0, 0, t, d) = packed.dout.at(0, 0, 130 + t, d);
    }
  }
  run(packed);
  run(alone);
  for (int64_t t = 0; t < 270; ++t) {
    EXPECT_EQ(packed.lse[130 + t], alone.lse[t]);
    EXPECT_EQ(packed.dscore.get(0, 0, 130 + t, 0), alone.dscore.get(0, 0, t, 0));
    for (int64_t d = 0; d < 8; ++d) {
      EXPECT_EQ(packed.out.get(0, 0, 130 + t, d), alone.out.get(0, 0, t, d));
      EXPECT_EQ(packed.dv.get(0, 0, 130 + t, d), alone.dv.get(0, 0, t, d));
    }
  }
}

// On a GPU nobody looks at cu_seqlens: what is out of range is left out, and nothing outside is read or written.
TYPED_TEST(SimtPrefixPool, CuSeqlensMayHoldAnything) {
  PrefixCase<TypeParam> c({.tokens = 100, .cu = {0, 40, 70, 100}});
  c.o.cu = {-7, 2147483647, -2147483647, 50};
  run(c);
}

}  // namespace
}  // namespace attn
