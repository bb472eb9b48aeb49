#include "attn/merge.h"

#include "merge_case.h"

namespace attn {
namespace {

using namespace merge_test;

template <class E> void run(Case<E>& c) {
  cpu::merge_states(c.forward());
  cpu::merge_states_backward(c.backward());
}

template <class E> class MergeStates : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(MergeStates, Elements);

TYPED_TEST(MergeStates, MatchesTheDefinition) {
  // Feature counts around vector widths and the kernel's chunk of 256.
  for (int64_t dim : {0, 1, 7, 16, 33, 64, 100, 256, 300}) {
    SCOPED_TRACE(dim);
    Case<TypeParam> c(3, 2, 3, 5, dim);
    run(c);
    c.check();
  }
}

TYPED_TEST(MergeStates, ManyPartsAndRows) {
  Case<TypeParam> c(17, 1, 4, 300, 64);
  run(c);
  c.check();
}

TYPED_TEST(MergeStates, OnePartIsCopied) {
  Case<TypeParam> c(1, 1, 2, 9, 40);
  run(c);
  for (int64_t r = 0; r < c.rows(); ++r) {
    EXPECT_EQ(c.lse[r], c.lses[r]);
    for (int64_t i = 0; i < c.dim; ++i) EXPECT_EQ(TypeParam::get(c.out[r * c.dim + i]), c.o(0, r, i));
  }
}

TYPED_TEST(MergeStates, EmptyPartsAreNotReadAndEmptyRowsAreZero) {
  Case<TypeParam> c(3, 1, 2, 6, 20);
  const double nan = std::nan("");
  auto empty = [&](int64_t part, int64_t row) {
    c.lses[part * c.rows() + row] = -kInf;
    for (int64_t i = 0; i < c.dim; ++i) c.outs[(part * c.rows() + row) * c.pitch() + i] = TypeParam::put(nan);
  };
  for (int64_t part = 0; part < 3; ++part) empty(part, 4);
  empty(1, 0);
  empty(0, 2);
  empty(2, 2);
  run(c);
  c.check();
  for (int64_t i = 0; i < c.dim; ++i) EXPECT_EQ(TypeParam::get(c.out[4 * c.dim + i]), 0);
  for (int64_t part = 0; part < 3; ++part) EXPECT_EQ(c.dlses[part * c.rows() + 4], 0);
}

TYPED_TEST(MergeStates, LargeLsesDoNotOverflow) {
  Case<TypeParam> c(4, 1, 1, 8, 12);
  Case<TypeParam> shifted = c;
  for (auto& l : c.lses) l = std::round(4 * l) / 4;  // so that adding 1024 is exact
  shifted.lses = c.lses;
  for (auto& l : shifted.lses) l += 1024;
  run(c);
  run(shifted);
  for (int64_t r = 0; r < c.rows(); ++r) EXPECT_NEAR(shifted.lse[r] - 1024, c.lse[r], 1e-3);
  for (size_t i = 0; i < c.out.size(); ++i) {
    EXPECT_NEAR(TypeParam::get(shifted.out[i]), TypeParam::get(c.out[i]), 4 * Case<TypeParam>::tolerance() + 2e-4);
  }
}

TYPED_TEST(MergeStates, NanLseIsNotHidden) {
  Case<TypeParam> c(2, 1, 1, 2, 4);
  c.lses[0] = c.lses[2] = static_cast<typename TypeParam::stat>(std::nan(""));
  run(c);
  EXPECT_TRUE(std::isnan(c.lse[0]));
  EXPECT_TRUE(std::isnan(TypeParam::get(c.out[0])));
  EXPECT_FALSE(std::isnan(c.lse[1]));
}

}  // namespace
}  // namespace attn
