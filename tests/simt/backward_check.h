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

}  // namespace attn
