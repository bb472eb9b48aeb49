// The same for the scan family.
#include "cuda/choose.h"
#include "cuda/launchers.h"
#include "cuda/linear_steps.h"

namespace attn::cuda {
namespace {

struct FlowForwardOf { template <DType kType> static constexpr Launcher<FlowWork> of = launch_flow_forward<kType>; };
struct FlowBackwardOf {
  template <DType kType> static constexpr Launcher<FlowGradWork> of = launch_flow_backward<kType>;
};
struct SumGroupsOf { template <DType kType> static constexpr Launcher<SumGroupsParams> of = launch_sum_groups<kType>; };
struct FlowStepOf { template <DType kType> static constexpr Launcher<FlowStepParams> of = launch_flow_step<kType>; };

void check_flow_dims(const char* what, int64_t dim, int64_t dim_v) {
  const int64_t most = dim > dim_v ? dim : dim_v;
  if (most <= kFlowMaxDim) return;
  refuse(what, "head dimensions of q, k and v must be at most ", kFlowMaxDim, ", got ", most,
         "; move the tensors to the CPU");
}

auto choose(const FlowParams& p) {
  constexpr const char* what = "flow attention";
  check_flow_dims(what, p.dim, p.dim_v);
  return by_type<FlowForwardOf>(what, p.dtype);
}
auto choose(const FlowBackwardParams& b) {
  constexpr const char* what = "flow attention backward";
  check_flow_dims(what, b.forward.dim, b.forward.dim_v);
  return by_type<FlowBackwardOf>(what, b.forward.dtype);
}
auto choose(const SumGroupsParams& p) { return by_type<SumGroupsOf>("sum over grouped heads", p.dtype); }
auto choose(const FlowStepParams& p) {
  constexpr const char* what = "flow attention step";
  check_flow_dims(what, p.dim, p.dim_v);
  return by_type<FlowStepOf>(what, p.dtype);
}

// The kernels of linear attention (linear_steps.h) on a stream.
struct LinearLaunchers {
  Launcher<SegmentSumsParams> sums;
  Launcher<ScanProductParams> product;
  Launcher<LinearDeltaParams> delta;
};
struct LinearOf {
  template <DType kType>
  static constexpr LinearLaunchers of = {launch_segment_sums<kType>, launch_scan_product<kType>,
                                         launch_linear_delta<kType>};
};
struct LinearRun {
  LinearLaunchers launch;
  Stream stream;

  void sums(const SegmentSumsParams& p) const { launch.sums(p, stream); }
  void scan(const ChunkScanParams& p) const { launch_chunk_scan<DType::f32>(p, stream); }
  void product(const ScanProductParams& p) const { launch.product(p, stream); }
  void delta(const LinearDeltaParams& p) const { launch.delta(p, stream); }
};

LinearLaunchers choose(const LinearParams& p) { return by_type<LinearOf>("linear attention", p.dtype); }
LinearLaunchers choose(const LinearBackwardParams& b) {
  return by_type<LinearOf>("linear attention backward", b.forward.dtype);
}

struct PrefixPoolOf { template <DType kType> static constexpr Launcher<PrefixWork> of = launch_prefix_pool<kType>; };
struct PrefixPoolBackwardOf {
  template <DType kType> static constexpr Launcher<PrefixGradWork> of = launch_prefix_pool_backward<kType>;
};
auto choose(const PrefixPoolParams& p) { return by_type<PrefixPoolOf>("prefix-softmax pooling", p.dtype); }
auto choose(const PrefixPoolBackwardParams& b) {
  return by_type<PrefixPoolBackwardOf>("prefix-softmax pooling backward", b.forward.dtype);
}

}  // namespace

void check_flow_forward(const FlowParams& params) { choose(params); }
void flow_forward(const FlowParams& params, float* scratch, Stream stream) {
  ScratchPieces pieces(scratch);
  choose(params)(flow_work(params, pieces), stream);
}

void check_flow_backward(const FlowBackwardParams& params) { choose(params); }
void flow_backward(const FlowBackwardParams& params, float* scratch, Stream stream) {
  ScratchPieces pieces(scratch);
  choose(params)(flow_grad_work(params, pieces), stream);
}

void check_sum_groups(const SumGroupsParams& params) { choose(params); }
void sum_groups(const SumGroupsParams& params, Stream stream) { choose(params)(params, stream); }

void check_flow_step(const FlowStepParams& params) { choose(params); }
void flow_step(const FlowStepParams& params, Stream stream) { choose(params)(params, stream); }

void check_linear_forward(const LinearParams& params) { choose(params); }
void linear_forward(const LinearParams& params, float* scratch, Stream stream) {
  linear_forward_steps(params, scratch, LinearRun{choose(params), stream});
}

void check_linear_backward(const LinearBackwardParams& params) { choose(params); }
void linear_backward(const LinearBackwardParams& params, float* scratch, Stream stream) {
  linear_backward_steps(params, scratch, LinearRun{choose(params), stream});
}

void check_prefix_pool_forward(const PrefixPoolParams& params) { choose(params); }
void prefix_pool_forward(const PrefixPoolParams& params, float* scratch, Stream stream) {
  ScratchPieces pieces(scratch);
  choose(params)(prefix_work(params, pieces), stream);
}

void check_prefix_pool_backward(const PrefixPoolBackwardParams& params) { choose(params); }
void prefix_pool_backward(const PrefixPoolBackwardParams& params, float* scratch, Stream stream) {
  ScratchPieces pieces(scratch);
  choose(params)(prefix_grad_work(params, pieces), stream);
}

}  // namespace attn::cuda
