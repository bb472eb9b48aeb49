#include "topk_nodes_case.h"

namespace attn {
namespace {

template <class E> class TopkNodes : public testing::Test {};
using Elements = testing::Types<F32, F64, BF16, F16>;
TYPED_TEST_SUITE(TopkNodes, Elements);

TYPED_TEST(TopkNodes, IsAStableSort) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{7, 0, 1, 30, 2, 100}, {}, {0}, {3000}, {64, 0}})
    for_topk_rules<TypeParam>(sizes, 5, [](auto& c) { cpu::topk_nodes(c.params()); });
}

}  // namespace
}  // namespace attn
