// PoNet's CUDA kernels on the host, against the definition in double.
#include "cuda/smxx/ponet.h"
#include "../cpp/ponet_grad_case.h"
#include "cuda/smxx/ponet_grad.h"
#include "cuda/smxx/ponet_grad_rows.h"
#include "cuda/smxx/ponet_key_grad.h"
#include "cuda/smxx/ponet_keys.h"
#include "cuda/smxx/ponet_sums.h"
#include "cuda/smxx/window_pool.h"
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
  simt::launch<cuda::PonetMaxima>(f, order);
  simt::launch<cuda::PonetKeys<T>>(f, order);
  simt::launch<cuda::PonetGlobal>(f, order);
  simt::launch<cuda::PonetMix<T>>(f, order);
}

template <class E> void run_backward(const PonetBackwardParams& b, simt::Order order = simt::Order::forward) {
  using T = PoolElement<E>;
  PoolScratch scratch(cuda::ponet_backward_scratch(b));
  cuda::ScratchPieces pieces(scratch.at(0));
  const cuda::PonetGradWork f = cuda::ponet_grad_work(b, pieces);
  simt::launch<cuda::PonetParts<T>>(f, order);
  simt::launch<cuda::PonetWinners>(f, order);
  simt::launch<cuda::PonetTokenGradients<T>>(f, order);
  simt::launch<cuda::PonetTotals>(f, order);
  simt::launch<cuda::PonetSequenceSums<false>>(f, order);
  simt::launch<cuda::PonetKeyGradients<T>>(f, order);
  simt::launch<cuda::PonetSequenceSums<true>>(f, order);
  simt::launch<cuda::PonetGivenRows<T>>(f, order);
  simt::launch<cuda::PonetLocalGradient<T>>(f, order);
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

TYPED_TEST(SimtPonet, GradientsMatchTheDefinition) {
  int number = 0;
  for (const PonetOptions& o : ponet_calls()) {
    SCOPED_TRACE(number);
    PonetGradCase<TypeParam> c(o, number++ % 4 < 2 ? TieRule::first : TieRule::even);
    run(c);
    run_backward<TypeParam>(c.backward());
    c.check_gradients();
    if (testing::Test::HasFatalFailure()) return;
  }
}

TYPED_TEST(SimtPonet, WhatIsNotWantedMattersToNoOtherGradient) {
  for (const int64_t segment_length : {0, 7}) {
    PonetOptions o;
    o.tokens = 70;
    o.segment_length = segment_length;
    o.values = Values::ties;
    o.special = true;
    PonetGradCase<TypeParam> all(o, TieRule::even);
    run(all);
    run_backward<TypeParam>(all.backward(), simt::Order::mixed);
    const PonetBackwardParams wanted = all.backward();
    for (void* PonetBackwardParams::* result :
         {&PonetBackwardParams::dq, &PonetBackwardParams::dk, &PonetBackwardParams::d_o, &PonetBackwardParams::dsegment,
          &PonetBackwardParams::dlocal, &PonetBackwardParams::dquery}) {
      PonetGradCase<TypeParam> one(o, TieRule::even);
      run(one);
      const PonetBackwardParams full = one.backward();
      PonetBackwardParams b = full;
      for (void** x : {&b.dq, &b.dk, &b.d_o, &b.dsegment, &b.dlocal, &b.dquery}) *x = nullptr;
      b.*result = full.*result;
      run_backward<TypeParam>(b);
      const bool query = b.dquery != nullptr;
      const size_t bytes =
          query ? one.dquery.size() * sizeof(one.dquery[0]) : one.dk.data.size() * sizeof(one.dk.data[0]);
      EXPECT_EQ(std::memcmp(b.*result, wanted.*result, bytes), 0);
    }
  }
}

TYPED_TEST(SimtPonet, NeitherTheBatchNorTheOrderOfThreadsMatters) {
  PonetOptions o = ponet_calls()[5];
  PonetGradCase<TypeParam> a(o, TieRule::first), b = a;
  run(a);
  run_backward<TypeParam>(a.backward());
  run(b, simt::Order::mixed);
  run_backward<TypeParam>(b.backward(), simt::Order::mixed);
  EXPECT_TRUE(same_bits(a.out, b.out));
  EXPECT_TRUE(same_bits(a.dk, b.dk));
  EXPECT_TRUE(same_bits(a.d_o, b.d_o));
  EXPECT_TRUE(same_bits(a.dsegment, b.dsegment));
  EXPECT_TRUE(same_bits(a.dlocal, b.dlocal));
  o.batch = 1;
  PonetGradCase<TypeParam> alone(o, TieRule::first);
  for (auto x : {std::pair{&a.q, &alone.q},
                 {&a.k, &alone.k},
                 {&a.o_rows, &alone.o_rows},
                 {&a.segment, &alone.segment},
                 {&a.local, &alone.local},
                 {&a.dout, &alone.dout}}) {
    std::copy(x.first->data.begin() + x.first->start + x.first->tokens * x.first->pitch, x.first->data.end(),
              x.second->data.begin() + x.second->start);
  }
  std::copy(a.query.begin() + o.channels, a.query.end(), alone.query.begin());
  for (auto x : {std::pair{&a.special, &alone.special}, {&a.kept, &alone.kept}}) {
    if (!x.first->data.empty())
      std::copy(x.first->data.begin() + o.tokens, x.first->data.end(), x.second->data.begin());
  }
  run(alone);
  run_backward<TypeParam>(alone.backward());
  const auto second = [](const auto& one, const auto& both) {
    return std::equal(one.begin(), one.end(), both.end() - one.size());
  };
  EXPECT_TRUE(second(alone.lse, a.lse));
  for (auto x : {std::pair{&alone.out, &a.out},
                 {&alone.dk, &a.dk},
                 {&alone.d_o, &a.d_o},
                 {&alone.dsegment, &a.dsegment},
                 {&alone.dlocal, &a.dlocal}}) {
    EXPECT_TRUE(std::memcmp(x.first->data.data(), x.second->data.data() + x.first->data.size(),
                            x.first->data.size() * sizeof(x.first->data[0])) == 0);
  }
}

// A window of three slides; the kernel of window pooling looks at each token's windows. Infinities and NaNs included.
TYPED_TEST(SimtPonet, LocalGradientIsThatOfWindowPooling) {
  using T = PoolElement<TypeParam>;
  for (const bool whole : {false, true}) {
    PonetOptions o;
    o.pack({40, 1, 0, 2, 70});
    o.masked = true;
    o.whole = whole;
    o.values = Values::ties;
    PonetGradCase<TypeParam> c(o, TieRule::first);
    for (int64_t t = 0; t < o.tokens; ++t) {
      for (int64_t i = 0; i < o.channels; ++i) {
        if (c.random() % 4 == 0) c.local.at(0, t, i) = TypeParam::put(-kInfinity);
        else if (c.random() % 8 == 0) c.local.at(0, t, i) = TypeParam::put(kNan);
      }
    }
    PonetBackwardParams b = c.backward();
    b.dq = b.dk = b.d_o = b.dsegment = b.dquery = nullptr;
    run_backward<TypeParam>(b);
    PoolResult<TypeParam> dx(o.batch * o.tokens * o.channels);
    const WindowPoolParams w{
        TypeParam::dtype, c.sequences.view(), o.channels, c.local.view(), 3, 1, false, false, c.kept.view(), nullptr};
    simt::launch<cuda::WindowGradient<T>>(
        cuda::wide_backward_call(WindowPoolBackwardParams{w, c.dout.view(), dx.data.data()}));
    EXPECT_TRUE(same_bits(c.dlocal, dx));
  }
}

// On a GPU nobody has looked at cu_seqlens: anything may come out, but nothing outside the tensors is touched.
TEST(SimtPonet, BoundsMayHoldAnything) {
  for (const bool ids : {false, true}) {
    for (const auto& cu :
         {std::vector<int32_t>{-5, 50, 10, INT32_MAX}, {INT32_MIN, 133, 0, -1}, {90, 80, 70, 60}, {0, 100, 20, 133}}) {
      PonetOptions o;
      o.pack({40, 20, 70});
      o.ids = ids;
      PonetGradCase<F32> c(o, TieRule::first);
      c.sequences.cu = cu;
      run(c);
      run_backward<F32>(c.backward());
    }
  }
}

}  // namespace
}  // namespace attn
