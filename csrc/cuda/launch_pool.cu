// The same for the pool family.
#include "cuda/choose.h"
#include "cuda/launchers.h"

namespace attn::cuda {
namespace {

struct AxisGateForwardOf {
  template <DType kType> static constexpr Launcher<AxisGateParams> of = launch_axis_gate_forward<kType>;
};
struct AxisGateBackwardOf {
  template <DType kType> static constexpr Launcher<AxisGateSumsParams> of = launch_axis_gate_backward<kType>;
};

auto choose(const AxisGateParams& p) { return by_type<AxisGateForwardOf>("axis_gate", p.dtype); }
auto choose(const AxisGateBackwardParams& b) {
  return by_type<AxisGateBackwardOf>("axis_gate backward", b.forward.dtype);
}

struct TopkNodesOf { template <DType kType> static constexpr Launcher<TopkPass> of = launch_topk_nodes<kType>; };

auto choose(const TopkNodesParams& p) { return by_type<TopkNodesOf>("topk_nodes", p.dtype); }

struct QueryPoolForwardOf {
  template <DType kType> static constexpr Launcher<QueryPoolForward> of = launch_query_pool_forward<kType>;
};
struct QueryPoolBackwardOf {
  template <DType kType> static constexpr Launcher<QueryPoolBackward> of = launch_query_pool_backward<kType>;
};

void check_sizes(const char* what, const QueryPoolParams& p) {
  const int64_t rows = pool_share(p) * p.queries;
  if (rows < INT32_MAX) return;
  refuse(what, "queries of the heads that share a head of k must be below 2**31 - 1, got ", rows,
         "; split them over several calls");
}

auto choose(const QueryPoolParams& p) {
  constexpr const char* what = "query_pool";
  check_sizes(what, p);
  return by_type<QueryPoolForwardOf>(what, p.dtype);
}
auto choose(const QueryPoolBackwardParams& b) {
  constexpr const char* what = "query_pool backward";
  check_sizes(what, b.forward);
  return by_type<QueryPoolBackwardOf>(what, b.forward.dtype);
}

}  // namespace

void check_axis_gate_forward(const AxisGateParams& params) { choose(params); }
void axis_gate_forward(const AxisGateParams& params, Stream stream) { choose(params)(params, stream); }

void check_axis_gate_backward(const AxisGateBackwardParams& params) { choose(params); }
void axis_gate_backward(const AxisGateBackwardParams& params, float* scratch, Stream stream) {
  choose(params)(axis_gate_sums(params, scratch), stream);
}

void check_topk_nodes(const TopkNodesParams& params) { choose(params); }
void topk_nodes(const TopkNodesParams& params, float* scratch, Stream stream) {
  choose(params)(topk_pass(params, scratch), stream);
}

void check_query_pool_forward(const QueryPoolParams& params) { choose(params); }
void query_pool_forward(const QueryPoolParams& params, float* scratch, Stream stream) {
  choose(params)(QueryPoolForward(params, scratch), stream);
}

void check_query_pool_backward(const QueryPoolBackwardParams& params) { choose(params); }
void query_pool_backward(const QueryPoolBackwardParams& params, float* scratch, Stream stream) {
  choose(params)(QueryPoolBackward(params, scratch), stream);
}

}  // namespace attn::cuda
