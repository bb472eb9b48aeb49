// From the products q k and dout v of a warp's scores to their weights and gradients, for both passes of the backward:
// with rows along the warp's sixteen (dQ) or keys (dK and dV).
#pragma once

#include "cuda/backward_params.h"
#include "cuda/sm80/warp_attend.h"

namespace attn::cuda {

// lse2: lse in base-2 units. A row without a gradient has +inf there, hence weights of exactly 0.
struct RowGradient { float lse2, delta, gate; };

ATTN_DEVICE RowGradient row_gradient(const BackwardParams& b, const RowItem& item, int32_t r) {
  RowGradient g{INFINITY, 0, 0};
  if (r >= item.rows) return g;
  const AttendParams& p = b.forward;
  const int64_t at = lse_index(p, item, r);
  const float lse = static_cast<const float*>(p.lse)[at], gate = p.head_gate.data ? row_gate(p, item, r) : 1;
  // The lse of a row with a gate of 0 may be missing (skip_gated); its scores have no gradient unless lse or gate have.
  if (lse == -INFINITY || (gate == 0 && !b.dlse && !b.dhead_gate)) return g;
  return {lse * static_cast<float>(kLog2e), b.delta[at], gate};
}

// Of a logit in base-2 units: its weight.
ATTN_DEVICE float score_weight(float x, const RowGradient& r) { return seam::exp2_fast(x - r.lse2); }
// Of a weight whose <dout, v> is `product`: the gradient of its logit.
ATTN_DEVICE float logit_gradient(float weight, float product, const RowGradient& r) {
  return weight * product * r.gate - weight * r.delta;
}

// Where a score stands.
template <class Row> struct ScorePlace {
  int key;  // of the tile
  const Row& row;
  const RowGradient& gradient;
};

// s: q k -> weight times gate; g: <dout, v> -> gradient of scale q k. Where a row doesn't see a key both become exactly
// 0, whatever stood there. place(n, e) says where s[n][e] stands; sum(e, x, y) is told of x = weight <dout, v> (for the
// gate's gradient) and y = gradient of the logit (for the key's weight).
template <class Warp, class Tile, class Place, class Sum>
ATTN_DEVICE void score_gradients(const AttendParams& p, const Tile& t, bool masked, typename Warp::Scores& s,
                                 typename Warp::Scores& g, Place&& place, Sum&& sum) {
  const float scale = static_cast<float>(p.scale * kLog2e), cap = static_cast<float>(p.softcap * kLog2e);
  ATTN_UNROLL
  for (int n = 0; n < Warp::kKeyGroups; ++n) {
    ATTN_UNROLL
    for (int e = 0; e < 4; ++e) {
      const auto at = place(n, e);
      float x = s[n][e] * scale, slope = 1;
      if (cap > 0) {
        x = soft_cap(x, cap);
        slope = 1 - x / cap * (x / cap);
      }
      if (p.key_log_weight.data) x += t.weight[at.key];
      const float weight = score_weight(x, at.gradient), projection = weight * g[n][e];
      const float dlogit = logit_gradient(weight, g[n][e], at.gradient);
      const bool keep = !masked || Warp::visible_key(p, t, at.key, at.row);
      sum(e, keep ? projection : 0, keep ? dlogit : 0);
      s[n][e] = keep ? weight * at.gradient.gate : 0;
      g[n][e] = keep ? dlogit * slope : 0;
    }
  }
}

}  // namespace attn::cuda
