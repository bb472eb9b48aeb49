// Running sums of causal flow attention's backward: what the gradients of a token's flows add to the sinks and sources
// of all tokens before it (in reversed time), and what the sums before it multiply them by.
#pragma once

#include "cpu/flow_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// sink_sum += wq_i (q_i + eps), source_sum += wk_i (k_i + eps), last row first, and with the sums so far
//   to_sink[i] = q_i . source_sum    to_source[i] = k_i . sink_sum
template <class A>
__attribute__((noinline)) void suffix_dots(const A* q, const A* k, int64_t ld, int64_t n, const A* wq, const A* wk,
                                           A eps, A* sink_sum, A* source_sum, A* to_sink, A* to_source) {
  constexpr int L = Lanes<A>::n;
  for (int64_t i = n - 1; i >= 0; --i) {
    const A *qi = q + i * ld, *ki = k + i * ld;
    const vec<A> a = splat(wq[i]), b = splat(wk[i]);
    vec<A> x{}, y{};
    for (int64_t f = 0; f < ld; f += L) {
      const vec<A> qf = load(qi + f), kf = load(ki + f);
      const vec<A> sinks = load(sink_sum + f) + a * (qf + eps), sources = load(source_sum + f) + b * (kf + eps);
      store(sink_sum + f, sinks);
      store(source_sum + f, sources);
      x += qf * sources;
      y += kf * sinks;
    }
    to_sink[i] = sum_lanes<A>(x);
    to_source[i] = sum_lanes<A>(y);
  }
}

// Weights by token of one segment, all divided by t or multiplied by it as they are used.
template <class A> struct FlowWeights {
  A *conserved_sink, *conserved_source;  // gradients / t
  A *incoming, *outgoing;                // gradients
  A *per_incoming, *per_outgoing;        // t / flow
};

// What the sums before and after add to d sink and d source. `after`: alpha, beta, kappa, theta; `before`: sources,
// sinks, normalised sources, normalised sinks.
template <class A>
inline void add_suffix_sums(const A* q, const A* k, int64_t ld, int64_t n, const FlowWeights<A>& w, A eps, A* after,
                            A* dq, A* dk) {
  constexpr int L = Lanes<A>::n;
  A *alpha = after, *beta = after + ld, *kappa = after + 2 * ld, *theta = after + 3 * ld;
  for (int64_t i = n - 1; i >= 0; --i) {
    const vec<A> wa = splat(w.conserved_sink[i]), wb = splat(w.conserved_source[i]), wk = splat(w.incoming[i]),
                 wt = splat(w.outgoing[i]), ri = splat(w.per_incoming[i]), ro = splat(w.per_outgoing[i]);
    for (int64_t f = 0; f < ld; f += L) {
      const vec<A> qf = load(q + i * ld + f) + eps, kf = load(k + i * ld + f) + eps;
      const vec<A> a = load(alpha + f) + wa * qf, b = load(beta + f) + wb * kf;
      const vec<A> c = load(kappa + f) + wk * qf, d = load(theta + f) + wt * kf;
      store(alpha + f, a);
      store(beta + f, b);
      store(kappa + f, c);
      store(theta + f, d);
      store(dk + i * ld + f, load(dk + i * ld + f) + ro * a + c);
      store(dq + i * ld + f, load(dq + i * ld + f) + ri * b + d);
    }
  }
}

template <class A>
inline void add_prefix_sums(const A* q, const A* k, int64_t ld, int64_t n, const FlowWeights<A>& w, A eps, A* before,
                            A* dq, A* dk) {
  constexpr int L = Lanes<A>::n;
  A *sources = before, *sinks = before + ld, *source_flows = before + 2 * ld, *sink_flows = before + 3 * ld;
  for (int64_t i = 0; i < n; ++i) {
    const vec<A> wa = splat(w.conserved_sink[i]), wb = splat(w.conserved_source[i]), wk = splat(w.incoming[i]),
                 wt = splat(w.outgoing[i]), ri = splat(w.per_incoming[i]), ro = splat(w.per_outgoing[i]);
    for (int64_t f = 0; f < ld; f += L) {
      const vec<A> qf = load(q + i * ld + f), kf = load(k + i * ld + f);
      const vec<A> a = load(source_flows + f) + ro * kf, b = load(sink_flows + f) + ri * qf;
      const vec<A> c = load(sources + f) + kf, d = load(sinks + f) + qf;
      store(source_flows + f, a);
      store(sink_flows + f, b);
      store(sources + f, c);
      store(sinks + f, d);
      store(dq + i * ld + f, load(dq + i * ld + f) + wa * (a + eps) + wk * (c + eps));
      store(dk + i * ld + f, load(dk + i * ld + f) + wb * (b + eps) + wt * (d + eps));
    }
  }
}

}  // namespace scan
ATTN_NAMESPACE_END
