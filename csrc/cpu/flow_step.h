// Causal flow attention, one token: the running sums are the whole state.
#pragma once

#include "cpu/flow_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> class FlowStep {
  using T = Operand<In>;
  using A = Acc<T>;

 public:
  explicit FlowStep(const FlowStepParams& params) : p_(params), ld_(round_up_lanes<T>(params.dim)) {}

  void run() const {
    parallel_items(p_.batch * p_.heads, [this](int64_t g, int) { step(g / p_.heads, g % p_.heads); });
  }

 private:
  const FlowStepParams& p_;
  const int64_t ld_;

  void step(int64_t batch, int64_t head) const {
    const int64_t g = batch * p_.heads + head, d = p_.dim, dv = p_.dim_v, head_kv = head / (p_.heads / p_.heads_kv);
    const A eps = static_cast<A>(p_.eps);
    const bool first = !p_.before.sums;
    const A t = first ? A{1} : static_cast<const A*>(p_.before.tokens)[batch] + 1;

    Carve probe{nullptr};
    for (int i = 0; i < 2; ++i) probe.take<A>(ld_);
    for (int i = 0; i < 2; ++i) probe.take<A>(dv);
    Carve c{static_cast<char*>(thread_scratch(probe.used))};
    A *sink = c.take<A>(ld_), *source = c.take<A>(ld_), *x = c.take<A>(dv), *out = c.take<A>(dv);
    feature_row(FeatureMap::sigmoid, row_at<const In>(p_.q, batch, head, 0), d, sink, ld_);
    feature_row(FeatureMap::sigmoid, row_at<const In>(p_.k, batch, head_kv, 0), d, source, ld_);

    const A* old = first ? nullptr : static_cast<const A*>(p_.before.sums) + g * 4 * d;
    A* sums = static_cast<A*>(p_.after.sums) + g * 4 * d;
    const A incoming = advance(old, sums, source, A{1}, sink, eps);
    const A outgoing = advance(old ? old + d : nullptr, sums + d, sink, A{1}, source, eps);
    const A to_sink = advance(old ? old + 2 * d : nullptr, sums + 2 * d, source, t / outgoing, sink, eps) / t;
    const A to_source = advance(old ? old + 3 * d : nullptr, sums + 3 * d, sink, t / incoming, source, eps) / t;

    const A flow = cut_flow(to_source, static_cast<A>(p_.clamp));
    const double before = first ? 0 : static_cast<const A*>(p_.before.log_mean)[g];
    const double top = first || flow > before ? flow : before;
    const double mean = ((t - 1) * std::exp(before - top) + std::exp(flow - top)) / t;
    const double log_mean = first ? flow : top + std::log(mean);
    static_cast<A*>(p_.after.log_mean)[g] = static_cast<A>(log_mean);
    const A weight = static_cast<A>(std::exp(flow - log_mean));

    const In* v = row_at<const In>(p_.v, batch, head_kv, 0);
    for (int64_t i = 0; i < dv; ++i) {
      x[i] = weight * to_float(v[i]);
      out[i] = 0;
    }
    const A* old_product = first ? nullptr : static_cast<const A*>(p_.before.product) + g * d * dv;
    A* product = static_cast<A*>(p_.after.product) + g * d * dv;
    for (int64_t f = 0; f < d; ++f) {
      const A a = sink[f], b = source[f];
      A* row = product + f * dv;
      if (old_product) {
        const A* old_row = old_product + f * dv;
        for (int64_t i = 0; i < dv; ++i) row[i] = old_row[i] + b * x[i];
      } else {
        for (int64_t i = 0; i < dv; ++i) row[i] = b * x[i];
      }
      for (int64_t i = 0; i < dv; ++i) out[i] += a * row[i];
    }
    store_scaled_row(row_at<In>(p_.out, batch, head, 0), logistic(to_sink) / incoming, out, dv);
    if (head == 0) static_cast<A*>(p_.after.tokens)[batch] = t;
  }

  // sum = old + weight row; returns (sum + eps) . (with + eps).
  A advance(const A* old, A* sum, const A* row, A weight, const A* with, A eps) const {
    A dot = 0;
    for (int64_t f = 0; f < p_.dim; ++f) {
      sum[f] = (old ? old[f] : A{0}) + weight * row[f];
      dot += (sum[f] + eps) * (with[f] + eps);
    }
    return dot;
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
