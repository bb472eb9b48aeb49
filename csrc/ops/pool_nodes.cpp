// Per-graph selection of nodes by score.
#include <cmath>

#include "ops/backend.h"
#include "ops/pool_args.h"

namespace attn::ops {
namespace {

std::tuple<Tensor, Tensor> topk_nodes(const Tensor& score, const Tensor& cu_seqlens, std::optional<double> ratio,
                                      std::optional<int64_t> k, std::optional<double> min_score) {
  const Check check("topk_nodes", score);
  TopkNodesParams p{};
  check.on_device(score, "score");
  p.dtype = check.floating(score, "score");
  check.rank(score, "score", 1, "[N]");
  check.contiguous(score, "score");
  check.length(score.size(0), "the number of nodes");
  p.score = score.data_ptr();
  p.nodes = score.size(0);
  p.cu = bounds_argument(check, cu_seqlens, "cu_seqlens", p.nodes);
  p.graphs = cu_seqlens.size(0) - 1;
  check.require(ratio.has_value() + k.has_value() + min_score.has_value() == 1,
                "exactly one of ratio, k and min_score must be given");
  check.require(!ratio || (*ratio > 0 && *ratio <= 1), "ratio must be in (0, 1], got ", ratio.value_or(0));
  check.require(!k || *k >= 0, "k must be >= 0, got ", k.value_or(0));
  check.require(!min_score || !std::isnan(*min_score), "min_score must be a number, got NaN");
  p.ratio = ratio.value_or(0);
  p.k = k.value_or(0);
  p.by_score = min_score.has_value();
  p.min_score = min_score.value_or(0);
  check_topk_nodes_on(check, p);
  Tensor perm = new_tensor(score, {p.nodes}, ScalarType::Long);
  Tensor kept = new_tensor(score, {p.graphs + 1}, ScalarType::Int);
  p.perm = static_cast<int64_t*>(perm.data_ptr());
  p.new_cu = static_cast<int32_t*>(kept.data_ptr());
  const Scratch scratch(score, topk_scratch_on(check, p));
  topk_nodes_on(check, p, scratch.floats());
  return {perm, kept};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(attn, CPU, m) { m.impl("topk_nodes", TORCH_BOX(&topk_nodes)); }
STABLE_TORCH_LIBRARY_IMPL(attn, CUDA, m) { m.impl("topk_nodes", TORCH_BOX(&topk_nodes)); }

}  // namespace attn::ops
