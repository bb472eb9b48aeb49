// The CUDA selection of nodes on the host, against a stable sort.
#include "cuda/smxx/topk_nodes.h"

#include "../cpp/topk_nodes_case.h"
#include "cuda/element.h"

namespace attn {
namespace {

template <class E> void run(TopkNodesCase<E>& c, simt::Order order = simt::Order::forward) {
  const TopkNodesParams p = c.params();
  std::vector<double> scratch(cuda::topk_scratch(p) / 2, NAN);
  cuda::run_topk_nodes<cuda::Element<E::dtype>>(
      cuda::topk_pass(p, reinterpret_cast<float*>(scratch.data())),
      [order]<class K>(cuda::KernelOf<K>, const cuda::TopkPass& pass) { simt::launch<K>(pass, order); });
}

template <class E> class SimtTopkNodes : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtTopkNodes, Elements);

TYPED_TEST(SimtTopkNodes, IsAStableSort) {
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{7, 0, 1, 30, 2, 100}, {}, {0}, {64, 0}, {300, 256}})
    for_topk_rules<TypeParam>(sizes, 5, [](auto& c) { run(c); });
}

// Graphs of several runs, in one round of merges and in two, and more graphs than a block has threads.
TYPED_TEST(SimtTopkNodes, LargeGraphs) {
  for (int64_t n : {2500, 2048, 4200}) {
    TopkNodesCase<TypeParam> c({n, 3, 70}, 0, 1);
    c.k = 2300;
    run(c, simt::Order::mixed);
    c.check();
  }
  TopkNodesCase<TypeParam> many(std::vector<int64_t>(600, 2), 0, 1);
  many.ratio = 0.5;
  run(many);
  many.check();
}

TYPED_TEST(SimtTopkNodes, BoundsMayHoldAnything) {
  for (const auto& [a, b] : {std::pair{-5, 90}, {90, -5}, {INT32_MAX, INT32_MIN}, {60, 20}}) {
    TopkNodesCase<TypeParam> c({30, 30, 40}, 0, 1);
    c.cu[1] = a;
    c.cu[2] = b;
    c.ratio = 1;
    run(c);
    c.ratio = 0;
    c.by_score = true;
    c.min_score = -99;
    run(c);
  }
}

}  // namespace
}  // namespace attn
