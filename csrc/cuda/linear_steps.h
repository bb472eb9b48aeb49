// Linear attention as a sequence of kernels: what segments add to the state, the sums before each of them, rows. The
// same for a launch on a GPU and one under test: `run` has sums(params), scan(params), product(params) and
// delta(params).
//
// With the mass as one more column of the values, v' = [v, 1], and g'_i = [dN_i, dmass_i], every gradient is the
// forward's product with other roles:
//   dphi(q_i) = sum_j (g'_i . v'_j) phi(k_j)     over the keys row i sees
//   dphi(k_j) = sum_i (v'_j . g'_i) phi(q_i)     over the rows that see key j
//   dv_j      = sum_i (phi(k_j) . phi(q_i)) dN_i likewise
// where the last columns are the u and w of ScanProduct.
#pragma once

#include <cmath>

#include "cuda/linear_scratch.h"
#include "cuda/scan_params.h"
#include "cuda/smxx/chunk_scan.h"

namespace attn::cuda {

struct LinearSteps {
  const LinearParams& p;
  ScanChunks queries, keys;
  int64_t features;
  int64_t group;  // query heads of a kv head

  explicit LinearSteps(const LinearParams& params)
      : p(params), queries(linear_chunks(p, p.tq)), keys(linear_chunks(p, p.tk)), features(feature_count(p.map, p.dim)),
        group(p.heads_kv ? p.heads / p.heads_kv : 1) {}

  ScanRows rows(const View4& x, int64_t dim, int64_t heads, int64_t tokens) const {
    return {x, dim, dim, FeatureMap::identity, {nullptr, 0, 0}, nullptr, heads, tokens};
  }
  ScanRows queries_alone() const { return rows(p.q, p.dim, p.heads, p.tq); }
  ScanRows keys_alone() const {
    ScanRows r = rows(p.k, p.dim, p.heads_kv, p.tk);
    r.keep = p.key_mask;
    return r;
  }
  // As operands of products with tokens: with taylor2 those have no features.
  bool taylor2() const { return p.map == FeatureMap::taylor2; }
  ScanRows inside_queries() const { return taylor2() ? queries_alone() : query_features(); }
  ScanRows inside_keys() const { return taylor2() ? keys_alone() : key_features(); }
  ScanRows query_features() const {
    ScanRows r = queries_alone();
    r.map = p.map;
    r.dim = features;
    return r;
  }
  ScanRows key_features() const {
    ScanRows r = keys_alone();
    r.map = p.map;
    r.dim = features;
    return r;
  }
  ScanRows values() const {
    ScanRows r = rows(p.v, p.dim_v, p.heads_kv, p.tk);
    r.keep = p.key_mask;
    return r;
  }

  StateView in_slots(const LinearStates& slots, bool transposed) const {
    return {slots.s, slots.z, p.heads_kv, true, transposed, transposed ? features : p.dim_v};
  }
  StateView in_tensors(const void* s, const void* z, bool transposed) const {
    return {static_cast<const float*>(s),   static_cast<const float*>(z), p.heads_kv, false, transposed,
            transposed ? features : p.dim_v};
  }

  void set_weight(ScanProductParams& x, TokenWeight of_taylor2) const {
    x.weight = taylor2() ? of_taylor2 : TokenWeight::product;
    x.inverse_root = p.dim > 0 ? static_cast<float>(1 / std::sqrt(static_cast<double>(p.dim))) : 0;
  }

  // Sums over everything, from (s0, z0) to (s, z); in slots, if causal, those before (after) every segment.
  template <class Run>
  void scan(Run& run, const ScanChunks& segments, const LinearStates& slots, const void* s0, const void* z0, void* s,
            void* z, bool reverse) const {
    const auto part = [&](int64_t size, float* parts, const void* first, void* last) {
      run.scan(ChunkScanParams{segments, p.heads_kv, size, parts, static_cast<const float*>(first),
                               static_cast<float*>(last), size, p.causal, reverse});
    };
    part(features * p.dim_v, slots.s, s0, s);
    part(features, slots.z, z0, z);
  }
  template <class Run> void sum_keys(Run& run, const LinearStates& slots, void* s, void* z) const {
    run.sums(SegmentSumsParams{keys, key_features(), values(), p.heads_kv, 1, true, nullptr, slots.s, slots.z});
    scan(run, keys, slots, p.s0, p.z0, s, z, false);
  }
};

template <class Run> void linear_forward_steps(const LinearParams& p, float* scratch, Run&& run) {
  const LinearSteps steps(p);
  ScratchPieces pieces(scratch);
  const LinearStates slots(p, pieces);
  steps.sum_keys(run, slots, p.s, p.z);
  ScanProductParams x{};
  x.segments = steps.queries;
  x.heads = p.heads;
  x.share = steps.group;
  x.inside = p.causal;
  x.a = steps.query_features();
  x.inside_a = steps.inside_queries();
  x.b = steps.inside_keys();
  x.c = steps.values();
  steps.set_weight(x, TokenWeight::taylor2);
  x.state = p.causal ? steps.in_slots(slots, false) : steps.in_tensors(p.s, p.z, false);
  x.term = p.normalize ? StateTerm::mass : StateTerm::none;
  x.normalize = p.normalize;
  x.eps = p.eps;
  x.mass = static_cast<float*>(p.mass);
  x.out = p.out;
  x.tokens = p.tq;
  run.product(x);
}

template <class Run> void linear_backward_steps(const LinearBackwardParams& b, float* scratch, Run&& run) {
  const LinearParams& p = b.forward;
  const LinearSteps steps(p);
  ScratchPieces pieces(scratch);
  const LinearBackwardScratch at(b, pieces);
  const LinearStates& slots = at.states;
  if (p.normalize) {
    run.delta(LinearDeltaParams{p.batch, p.heads, p.tq, p.dim_v, p.out, b.dout, static_cast<const float*>(p.mass),
                                at.factor, at.mass_term});
  }
  ScanRows gradients = steps.rows(b.dout, p.dim_v, p.heads, p.tq);
  gradients.scale = at.factor;

  // dq: the forward's states again.
  ScanProductParams x{};
  x.inside = p.causal;
  x.segments = steps.queries;
  x.heads = p.heads;
  x.share = steps.group;
  x.tokens = p.tq;
  x.a = x.inside_a = gradients;
  x.b = steps.values();
  x.c = x.slope_b = steps.inside_keys();
  x.slope_a = steps.inside_queries();
  steps.set_weight(x, TokenWeight::slope);
  x.row_term = at.mass_term;
  x.term = p.normalize ? StateTerm::row : StateTerm::none;
  x.at = steps.query_features();
  x.out = b.dq;
  if (p.causal) {
    steps.sum_keys(run, slots, nullptr, nullptr);
    x.state = steps.in_slots(slots, true);
  } else {
    x.state = steps.in_tensors(p.s, p.z, true);
  }
  run.product(x);

  // dk and dv: sums over rows, from the last one on.
  run.sums(SegmentSumsParams{steps.queries, steps.query_features(), gradients, p.heads_kv, steps.group, p.normalize,
                             at.mass_term, slots.s, slots.z});
  void *s = b.ds0, *z = b.dz0;
  if (!p.causal && !s) s = at.s, z = at.z;
  steps.scan(run, steps.queries, slots, b.ds, b.dz, s, z, true);
  x.segments = steps.keys;
  x.heads = p.heads_kv;
  x.many = x.reverse = true;
  x.a = x.inside_a = steps.values();
  x.b = gradients;
  x.c = x.slope_b = steps.inside_queries();
  x.slope_a = steps.inside_keys();
  x.row_term = nullptr;
  x.token_term = at.mass_term;
  x.term = StateTerm::one;
  x.state = p.causal ? steps.in_slots(slots, true) : steps.in_tensors(s, z, true);
  x.at = steps.key_features();
  x.out = b.dk;
  run.product(x);
  x.a = steps.key_features();
  x.inside_a = steps.inside_keys();
  x.b = steps.inside_queries();
  x.c = gradients;
  steps.set_weight(x, TokenWeight::taylor2);
  x.token_term = nullptr;
  x.term = StateTerm::none;
  x.state.transposed = false;
  x.state.outer = p.dim_v;
  x.at = steps.values();
  x.at.x.data = nullptr;  // no feature map
  x.out = b.dv;
  run.product(x);
}

}  // namespace attn::cuda
