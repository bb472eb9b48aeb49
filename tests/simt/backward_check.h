// A call of attention backward for tests of CUDA kernels.
#pragma once

#include "../cpp/attend_backward_case.h"
#include "attend_check.h"

namespace attn {

// A call with the forward's results filled in: the textbook's, in E.
template <class E> class BackwardCase : public AttendCase<E> {
 public:
  BackwardCase(const AttendOptions& o, uint32_t seed) : AttendCase<E>(o, seed), g(this->params()) {
    Expected out, lse;
    this->expect_forward(out, lse);
    const AttendParams p = this->params();
    for (int64_t b = 0; b < p.batch; ++b)
      for (int64_t h = 0; h < p.heads; ++h)
        for (int64_t t = 0; t < p.tq; ++t) {
          // Rows outside every sequence are marked already; skipped ones get anything.
          const bool skipped = o.skip_gated && this->gate_of(b, h, t) == 0;
          float& to = this->lse[lse.row(b, h, t)];
          const bool outside = to == -INFINITY;
          if (!outside) to = skipped ? -1000.f : static_cast<float>(*lse.at(b, h, t));
          for (int64_t d = 0; d < p.dim_v; ++d) this->out.at(b, h, t, d) = E::put(outside ? NAN : out.at(b, h, t)[d]);
        }
  }

  AttendBackwardParams backward() { return backward_params<E>(*this, g); }

  GradientTensors<E> g;
};

// What a row holds reaches only the keys it sees, and the other way round: of a causal call, or with segments one of
// every other token. run(params, order) runs the kernels.
template <class E, class Run> void check_what_nan_reaches(const AttendOptions& o, int64_t at, Run&& run) {
  const int64_t tokens = o.schedule.tq;
  const auto sees = [&](int64_t row, int64_t key) { return o.segments ? row % 2 == key % 2 : key <= row; };
  for (int which = 0; which < 3; ++which) {  // q, dout, k
    SCOPED_TRACE(testing::Message() << o << " which " << which);
    BackwardCase<E> c(o, 10);
    for (size_t t = 0; t < c.segment_q.size(); ++t) c.segment_q[t] = c.segment_k[t] = static_cast<int32_t>(t % 2);
    for (int64_t d : {0, 1})
      (which == 0 ? c.q : which == 1 ? c.dout : c.k).at(0, 0, at, d) = E::put(d ? INFINITY : NAN);
    const auto row_is_wrong = [&](int64_t t) { return which == 2 ? sees(t, at) : t == at; };
    for (int64_t t = 0; t < tokens && which != 1; ++t) {
      if (row_is_wrong(t)) c.lse[static_cast<size_t>(t)] = NAN;
    }
    run(c.backward(), simt::Order::forward);
    const auto finite = [&](const auto& x, int64_t t) {
      bool all = true;
      for (int64_t d = 0; d < o.dim; ++d) all &= std::isfinite(E::get(x[static_cast<size_t>(t * o.dim + d)]));
      return all;
    };
    for (int64_t t = 0; t < tokens; ++t) {
      ASSERT_NE(finite(c.g.dq, t), row_is_wrong(t)) << t;
      bool seen = false;
      for (int64_t row = 0; row < tokens; ++row) seen |= row_is_wrong(row) && sees(row, t);
      ASSERT_NE(finite(c.g.dk, t), seen) << t;
      ASSERT_NE(finite(c.g.dv, t), seen) << t;
    }
  }
}

// Gradients of queries and of keys have the same bits alone as together, in any order of a block's threads.
template <class E, class Run> void check_parts(const AttendOptions& o, uint32_t seed, Run&& run) {
  SCOPED_TRACE(testing::Message() << o);
  BackwardCase<E> all(o, seed), queries(o, seed), keys(o, seed);
  run(all.backward(), simt::Order::forward);
  AttendBackwardParams b = queries.backward();
  b.dk.data = b.dv.data = b.dkey_log_weight = nullptr;
  run(b, simt::Order::mixed);
  b = keys.backward();
  b.dq.data = b.dhead_gate = nullptr;
  run(b, simt::Order::backward);
  queries.g.dk = all.g.dk;
  queries.g.dv = all.g.dv;
  queries.g.dkey_weight = all.g.dkey_weight;
  ASSERT_TRUE(queries.g.same_bits(all.g)) << "dq alone";
  keys.g.dq = all.g.dq;
  keys.g.dgate = all.g.dgate;
  ASSERT_TRUE(keys.g.same_bits(all.g)) << "dk and dv alone";
}

}  // namespace attn
