// The CUDA kernels of query pooling on the host, against the formulas in double.
#include "cuda/sm80/query_pool_run.h"

#include "../cpp/query_pool_case.h"
#include "cuda/element.h"

namespace attn {
namespace {

struct Launch {
  simt::Order order;
  template <class K> void operator()(cuda::PoolKernel<K>, const char*, const typename K::Params& p) const {
    simt::launch<K>(p, order);
  }
};

template <class E> void run(QueryPoolCase<E>& c, simt::Order order = simt::Order::forward) {
  const QueryPoolParams p = c.forward();
  using T = cuda::Element<E::dtype>;
  std::vector<float> scratch(cuda::query_pool_scratch(p), NAN);
  cuda::run_query_pool_forward<T>(cuda::QueryPoolForward(p, scratch.data()), Launch{order});
  const QueryPoolBackwardParams b = c.backward();
  // Keys of no sequence, which the op fills.
  for (auto* x : {&c.dk, &c.dv}) {
    for (int64_t t = c.o.packed ? c.cu.back() : c.tokens; t < c.tokens; ++t) {
      for (int64_t i = 0; i < x->heads * x->dim; ++i) x->at(0, i / x->dim, t, i % x->dim) = E::put(0);
    }
  }
  scratch.assign(cuda::query_pool_scratch(b), NAN);
  cuda::run_query_pool_backward<T>(cuda::QueryPoolBackward(b, scratch.data()), Launch{order});
}

template <class E> class SimtQueryPool : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtQueryPool, Elements);

TYPED_TEST(SimtQueryPool, MatchesTheFormulas) {
  std::mt19937 random(static_cast<uint32_t>(TypeParam::dtype) + 5);
  uint32_t seed = 0;
  for (const QueryPoolOptions& o : query_pool_calls(random, 30)) {
    SCOPED_TRACE(describe(o));
    QueryPoolCase<TypeParam> c(o, ++seed);
    if (c.tokens == 0) continue;  // the op answers
    run(c);
    c.check_forward();
    c.check_backward();
    if (this->HasFatalFailure()) return;
  }
}

template <class Values> bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
}

// Several parts and kinds of tiles.
inline QueryPoolOptions large_call(int activation) {
  QueryPoolOptions o;
  o.activation = static_cast<PoolActivation>(activation);
  o.packed = true;
  o.lengths = {300, 7, 400};
  o.heads = 2;
  o.queries = activation == 0 ? 20 : 3;
  o.dim = 70;
  o.dim_v = 62;
  o.keep_of_10 = 7;
  return o;
}

TYPED_TEST(SimtQueryPool, TheOrderOfThreadsDoesNotMatter) {
  for (int activation = 0; activation < 3; ++activation) {
    QueryPoolOptions o = large_call(activation);
    o.shared = true;
    QueryPoolCase<TypeParam> a(o, 3), b(o, 3);
    run(a);
    run(b, simt::Order::mixed);
    EXPECT_TRUE(same_bits(a.out.data, b.out.data) && same_bits(a.dq.data, b.dq.data) &&
                same_bits(a.dk.data, b.dk.data) && same_bits(a.dv.data, b.dv.data));
  }
}

// A sequence has the same bits alone as in a batch.
TYPED_TEST(SimtQueryPool, TheBatchDoesNotMatter) {
  for (int activation = 0; activation < 3; ++activation) {
    QueryPoolOptions o = large_call(activation);
    QueryPoolCase<TypeParam> all(o, 3);
    o.lengths = {400};
    QueryPoolCase<TypeParam> alone(o, 4);
    const int64_t begin = 307;
    alone.mask.assign(all.mask.begin() + begin, all.mask.end());
    auto copy = [&](auto& from, auto& to, int64_t entry, int64_t first) {
      for (int64_t h = 0; h < to.heads; ++h) {
        for (int64_t t = 0; t < to.tokens; ++t) {
          for (int64_t d = 0; d < to.dim; ++d) to.at(0, h, t, d) = from.at(entry, h, first + t, d);
        }
      }
    };
    copy(all.q, alone.q, 2, 0);
    copy(all.dout, alone.dout, 2, 0);
    copy(all.k, alone.k, 0, begin);
    copy(all.v, alone.v, 0, begin);
    run(all);
    run(alone);
    auto compare = [&](auto& from, auto& to, int64_t entry, int64_t first) {
      auto part = to;
      copy(from, part, entry, first);
      EXPECT_TRUE(same_bits(part.data, to.data));
    };
    compare(all.out, alone.out, 2, 0);
    compare(all.dq, alone.dq, 2, 0);
    compare(all.dk, alone.dk, 0, begin);
    compare(all.dv, alone.dv, 0, begin);
  }
}

// Bounds that nobody has looked at: nothing outside the tensors is touched (AddressSanitizer sees it).
TYPED_TEST(SimtQueryPool, BoundsMayHoldAnything) {
  for (const auto& [a, b] : {std::pair{-5, 90}, {90, -5}, {INT32_MAX, INT32_MIN}, {60, 20}}) {
    QueryPoolOptions o = large_call(a == -5);
    QueryPoolCase<TypeParam> c(o, 3);
    c.cu[1] = a;
    c.cu[2] = b;
    run(c);
  }
}

}  // namespace
}  // namespace attn
