// The CUDA merge kernels on the host, against the definition in double.
#include "cuda/smxx/merge_states.h"

#include "../cpp/merge_case.h"

namespace attn {
namespace {

using namespace merge_test;

template <class E> struct DeviceElement;
template <> struct DeviceElement<F32> { using type = float; };
template <> struct DeviceElement<BF16> { using type = seam::Bf16; };
template <> struct DeviceElement<F16> { using type = seam::F16; };

template <class E> void run(Case<E>& c, simt::Order order = simt::Order::forward) {
  using T = typename DeviceElement<E>::type;
  simt::launch<cuda::MergeStates<T>>(c.forward(), order);
  simt::launch<cuda::MergeStatesBackward<T>>(c.backward(), order);
}

template <class E> class SimtMergeStates : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtMergeStates, Elements);

// Feature counts around a warp and around the features of a lane.
TYPED_TEST(SimtMergeStates, MatchesTheDefinition) {
  for (int64_t dim : {0, 1, 7, 31, 32, 33, 64, 100, 128, 129, 256, 300}) {
    SCOPED_TRACE(dim);
    Case<TypeParam> c(3, 2, 3, 5, dim);
    run(c);
    c.check();
  }
  Case<TypeParam> many(17, 1, 4, 30, 64);
  run(many);
  many.check();
}

TYPED_TEST(SimtMergeStates, TheOrderOfThreadsDoesNotMatter) {
  Case<TypeParam> a(5, 1, 3, 7, 70), b = a;
  run(a);
  run(b, simt::Order::mixed);
  EXPECT_EQ(0, std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(a.out[0])));
  EXPECT_EQ(a.dlses, b.dlses);
}

TYPED_TEST(SimtMergeStates, EmptyPartsAreNotReadAndEmptyRowsAreZero) {
  Case<TypeParam> c(3, 1, 2, 6, 20);
  auto empty = [&](int64_t part, int64_t row) {
    c.lses[part * c.rows() + row] = -INFINITY;
    for (int64_t i = 0; i < c.dim; ++i) c.outs[(part * c.rows() + row) * c.pitch() + i] = TypeParam::put(std::nan(""));
  };
  for (int64_t part = 0; part < 3; ++part) empty(part, 4);
  empty(1, 0);
  empty(0, 2);
  empty(2, 2);
  run(c);
  c.check();
}

TYPED_TEST(SimtMergeStates, NanLseIsNotHidden) {
  Case<TypeParam> c(2, 1, 1, 2, 4);
  c.lses[0] = c.lses[2] = std::nanf("");
  run(c);
  EXPECT_TRUE(std::isnan(c.lse[0]));
  EXPECT_TRUE(std::isnan(TypeParam::get(c.out[0])));
  EXPECT_FALSE(std::isnan(c.lse[1]));
}

}  // namespace
}  // namespace attn
