// PoNet's CUDA kernels on the host, against the definition in double.
#include "cuda/smxx/ponet.h"
#include "../cpp/ponet_case.h"
#include "cuda/smxx/ponet_keys.h"
#include "cuda/smxx/ponet_sums.h"
#include "simt/pool_check.h"

namespace attn {
namespace {

template <class E> void run(PonetCase<E>& c, simt::Order order = simt::Order::forward) {
  using T = PoolElement<E>;
  const PonetParams p = c.forward();
  PoolScratch scratch(cuda::ponet_forward_scratch(p));
  cuda::ScratchPieces pieces(scratch.at(0));
  const cuda::PonetWork f = cuda::ponet_work(p, pieces);
  ASSERT_TRUE(f.wide || !c.o.whole);
  simt::launch<cuda::PonetSums<T>>(f, order);
  simt::launch<cuda::PonetQuery>(f, order);
  simt::launch<cuda::PonetMaxima<T>>(f, order);
  simt::launch<cuda::PonetKeys<T>>(f, order);
  simt::launch<cuda::PonetGlobal>(f, order);
  simt::launch<cuda::PonetMix<T>>(f, order);
}

template <class E> class SimtPonet : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtPonet, Elements);

TYPED_TEST(SimtPonet, ForwardMatchesTheDefinition) {
  int number = 0;
  for (const PonetOptions& o : ponet_calls()) {
    SCOPED_TRACE(number++);
    PonetCase<TypeParam> c(o);
    run(c);
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

TYPED_TEST(SimtPonet, NeitherTheBatchNorTheOrderOfThreadsMatters) {
  PonetOptions o = ponet_calls()[4];
  PonetCase<TypeParam> a(o), b = a;
  run(a);
  run(b, simt::Order::mixed);
  EXPECT_TRUE(same_bits(a.out, b.out));
  o.batch = 1;
  PonetCase<TypeParam> alone(o);
  const auto second = [&](const TokenRows<TypeParam>& from, TokenRows<TypeParam>& to) {
    std::copy(from.data.begin() + from.start + from.tokens * from.pitch, from.data.end(), to.data.begin() + to.start);
  };
  second(a.q, alone.q);
  second(a.k, alone.k);
  second(a.o_rows, alone.o_rows);
  second(a.segment, alone.segment);
  second(a.local, alone.local);
  std::copy(a.query.begin() + o.channels, a.query.end(), alone.query.begin());
  for (auto x : {std::pair{&a.special, &alone.special}, {&a.kept, &alone.kept}}) {
    if (!x.first->data.empty())
      std::copy(x.first->data.begin() + o.tokens, x.first->data.end(), x.second->data.begin());
  }
  run(alone);
  EXPECT_TRUE(std::equal(alone.out.data.begin(), alone.out.data.end(), a.out.data.end() - alone.out.data.size()));
  EXPECT_TRUE(std::equal(alone.lse.begin(), alone.lse.end(), a.lse.end() - alone.lse.size()));
}

// On a GPU nobody has looked at cu_seqlens: anything may come out, but nothing outside the tensors is touched.
TEST(SimtPonet, BoundsMayHoldAnything) {
  PonetOptions o;
  o.pack({40, 20, 70});
  for (const auto& cu : {std::vector<int32_t>{-5, 50, 10, INT32_MAX}, {INT32_MIN, 133, 0, -1}, {90, 80, 70, 60}}) {
    PonetCase<F32> c(o);
    c.sequences.cu = cu;
    run(c);
  }
}

}  // namespace
}  // namespace attn
