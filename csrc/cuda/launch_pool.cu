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

struct PonetForwardOf { template <DType kType> static constexpr Launcher<PonetWork> of = launch_ponet_forward<kType>; };
struct PonetBackwardOf {
  template <DType kType> static constexpr Launcher<PonetGradWork> of = launch_ponet_backward<kType>;
};

struct SegmentPoolOf {
  template <DType kType> static constexpr Launcher<SegmentForwardParams> of = launch_segment_pool<kType>;
};
struct SegmentPoolBackwardOf {
  template <DType kType> static constexpr Launcher<SegmentBackwardParams> of = launch_segment_pool_backward<kType>;
};
struct TapPoolOf {
  template <DType kType> static constexpr Launcher<WideCall<TapPoolParams>> of = launch_tap_pool<kType>;
};
struct TapPoolBackwardOf {
  template <DType kType> static constexpr Launcher<WideCall<TapPoolBackwardParams>> of =
      launch_tap_pool_backward<kType>;
};
struct WindowPoolOf {
  template <DType kType> static constexpr Launcher<WideCall<WindowPoolParams>> of = launch_window_pool<kType>;
};
struct WindowPoolBackwardOf {
  template <DType kType> static constexpr Launcher<WideCall<WindowPoolBackwardParams>> of =
      launch_window_pool_backward<kType>;
};

auto choose(const PonetParams& p) { return by_type<PonetForwardOf>("ponet_mix", p.dtype); }
auto choose(const PonetBackwardParams& b) { return by_type<PonetBackwardOf>("ponet_mix backward", b.forward.dtype); }
auto choose(const SegmentPoolParams& p) { return by_type<SegmentPoolOf>("segment_pool", p.dtype); }
auto choose(const SegmentPoolBackwardParams& b) {
  return by_type<SegmentPoolBackwardOf>("segment_pool backward", b.forward.dtype);
}
auto choose(const TapPoolParams& p) { return by_type<TapPoolOf>("tap_pool", p.dtype); }
auto choose(const TapPoolBackwardParams& b) { return by_type<TapPoolBackwardOf>("tap_pool backward", b.forward.dtype); }
auto choose(const WindowPoolParams& p) { return by_type<WindowPoolOf>("window_pool", p.dtype); }
auto choose(const WindowPoolBackwardParams& b) {
  return by_type<WindowPoolBackwardOf>("window_pool backward", b.forward.dtype);
}
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

void check_ponet_forward(const PonetParams& params) { choose(params); }
void ponet_forward(const PonetParams& params, float* scratch, Stream stream) {
  ScratchPieces pieces(scratch);
  choose(params)(ponet_work(params, pieces), stream);
}
void check_ponet_backward(const PonetBackwardParams& params) { choose(params); }
void ponet_backward(const PonetBackwardParams& params, float* scratch, Stream stream) {
  ScratchPieces pieces(scratch);
  choose(params)(ponet_grad_work(params, pieces), stream);
}

void check_segment_pool_forward(const SegmentPoolParams& params) { choose(params); }
void segment_pool_forward(const SegmentPoolParams& params, float* scratch, Stream stream) {
  choose(params)(segment_forward_params(params, scratch), stream);
}
void check_segment_pool_backward(const SegmentPoolBackwardParams& params) { choose(params); }
void segment_pool_backward(const SegmentPoolBackwardParams& params, float* scratch, Stream stream) {
  choose(params)(segment_backward_params(params, scratch), stream);
}
void segment_ids(const SegmentIdsParams& params, Stream stream) { launch_segment_ids<DType::f32>(params, stream); }
void segment_offsets(const SegmentIdsParams& params, int64_t segments, int32_t* offsets, Stream stream) {
  segment_ids(params, stream);
  const Sequences& s = params.sequences;
  launch_segment_offsets<DType::f32>({s.batch, s.tokens, segments, params.ascending, offsets}, stream);
}

void check_tap_pool_forward(const TapPoolParams& params) { choose(params); }
void tap_pool_forward(const TapPoolParams& params, Stream stream) { choose(params)(wide_call(params), stream); }
void check_tap_pool_backward(const TapPoolBackwardParams& params) { choose(params); }
void tap_pool_backward(const TapPoolBackwardParams& params, Stream stream) {
  choose(params)(wide_backward_call(params), stream);
}

void check_window_pool_forward(const WindowPoolParams& params) { choose(params); }
void window_pool_forward(const WindowPoolParams& params, Stream stream) { choose(params)(wide_call(params), stream); }
void check_window_pool_backward(const WindowPoolBackwardParams& params) { choose(params); }
void window_pool_backward(const WindowPoolBackwardParams& params, Stream stream) {
  choose(params)(wide_backward_call(params), stream);
}

}  // namespace attn::cuda
