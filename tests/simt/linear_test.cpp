// The CUDA kernels of linear attention on the host, against the definition in double.
#include "../cpp/linear_case.h"

#include "cuda/linear_steps.h"
#include "cuda/sm80/scan_product.h"
#include "cuda/sm80/segment_sums.h"
#include "cuda/smxx/linear_delta.h"

namespace attn {
namespace {

using namespace linear_test;

template <class E> struct DeviceElement;
template <> struct DeviceElement<F32> { using type = float; };
template <> struct DeviceElement<BF16> { using type = seam::Bf16; };
template <> struct DeviceElement<F16> { using type = seam::F16; };

template <class T> struct Run {
  simt::Order order = simt::Order::forward;
  void sums(const cuda::SegmentSumsParams& p) const {
    if (p.b.map == FeatureMap::taylor2) simt::launch<cuda::SegmentSums<T, true>>(p, order);
    else simt::launch<cuda::SegmentSums<T, false>>(p, order);
  }
  void scan(const cuda::ChunkScanParams& p) const { simt::launch<cuda::ChunkScan>(p, order); }
  void product(const cuda::ScanProductParams& p) const {
    if (p.weight == cuda::TokenWeight::product) simt::launch<cuda::ScanProduct<T, false>>(p, order);
    else simt::launch<cuda::ScanProduct<T, true>>(p, order);
  }
  void delta(const cuda::LinearDeltaParams& p) const {
    simt::launch<cuda::LinearDelta<T, cuda::ScanTile<T>>>(p, order);
  }
};

template <class E> void forward(Case<E>& c, simt::Order order = simt::Order::forward) {
  const LinearParams p = c.forward();
  std::vector<float> scratch(cuda::linear_scratch(p), NAN);
  cuda::linear_forward_steps(p, scratch.data(), Run<typename DeviceElement<E>::type>{order});
}
template <class E> void backward(Case<E>& c, simt::Order order = simt::Order::forward) {
  const LinearBackwardParams b = c.backward();
  std::vector<float> scratch(cuda::linear_backward_scratch(b), NAN);
  cuda::linear_backward_steps(b, scratch.data(), Run<typename DeviceElement<E>::type>{order});
}

template <class E> class SimtLinear : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtLinear, Elements);

TYPED_TEST(SimtLinear, MatchesTheDefinition) {
  for (const Options& options : cases()) {
    SCOPED_TRACE(text(options));
    Case<TypeParam> c(options);
    forward(c);
    backward(c);
    c.check();
    if (this->HasFailure()) return;
  }
}

TYPED_TEST(SimtLinear, TheOrderOfThreadsDoesNotMatter) {
  for (bool causal : {true, false}) {
    Case<TypeParam> a({.tq = 100, .tk = 100, .causal = causal, .states = true}), b = a;
    forward(a);
    backward(a);
    forward(b, simt::Order::mixed);
    backward(b, simt::Order::mixed);
    for (auto member : {&Case<TypeParam>::out, &Case<TypeParam>::dq, &Case<TypeParam>::dk, &Case<TypeParam>::dv}) {
      const auto &x = (a.*member).data, &y = (b.*member).data;
      EXPECT_EQ(0, std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])));
    }
    EXPECT_EQ(a.ds0, b.ds0);
    EXPECT_EQ(a.dz0, b.dz0);
  }
}

// Nor does what isn't a number among it: 0 times NaN is NaN.
TYPED_TEST(SimtLinear, TheFutureDoesNotMatter) {
  Case<TypeParam> a({.heads = 1, .tq = 330, .tk = 330, .dim_v = 70}), b = a;
  forward(a);
  for (int64_t cut : {1, 65, 270}) {
    Case<TypeParam> later = b;
    for (auto member : {&Case<TypeParam>::q, &Case<TypeParam>::k, &Case<TypeParam>::v}) {
      auto& x = later.*member;
      for (int64_t t = cut; t < 330; ++t) {
        for (int64_t i = 0; i < x.dim; ++i) x.at(0, 0, t, i) = TypeParam::put(i % 2 ? NAN : INFINITY);
      }
    }
    forward(later);
    for (int64_t t = 0; t < 330; ++t) {
      for (int64_t i = 0; i < 70; ++i) {
        if (t < cut) EXPECT_EQ(a.out.get(0, 0, t, i), later.out.get(0, 0, t, i)) << t;
        else EXPECT_FALSE(std::isfinite(later.out.get(0, 0, t, i))) << t;
      }
    }
  }
}

// A row's bits don't depend on the sequences around it.
TYPED_TEST(SimtLinear, PackedIsAlone) {
  Case<TypeParam> packed({.tq = 400, .tk = 400, .cu = {0, 130, 130, 400}}), alone({.tq = 270, .tk = 270});
  for (auto member : {&Case<TypeParam>::q, &Case<TypeParam>::k, &Case<TypeParam>::v}) {
    auto &x = packed.*member, &y = alone.*member;
    std::copy(x.data.begin() + 130 * x.heads * x.pitch, x.data.end(), y.data.begin());
  }
  forward(packed);
  forward(alone);
  for (int64_t t = 0; t < 270; ++t) EXPECT_EQ(packed.out.get(0, 1, 130 + t, 2), alone.out.get(0, 1, t, 2));
}

// On a GPU nobody looks at cu_seqlens: what is out of range is left out, and nothing outside is read or written.
TYPED_TEST(SimtLinear, CuSeqlensMayHoldAnything) {
  Case<TypeParam> c({.tq = 100, .tk = 100, .states = true, .cu = {0, 40, 70, 100}});
  c.o.cu = {-7, 2147483647, -2147483647, 50};
  forward(c);
  backward(c);
}

}  // namespace
}  // namespace attn
