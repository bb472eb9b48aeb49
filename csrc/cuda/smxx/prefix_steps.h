// Prefix-softmax pooling as a sequence of kernels. run(kernel, params) launches one, given an object of its type.
#pragma once

#include "cuda/backward_params.h"
#include "cuda/smxx/attend_delta.h"
#include "cuda/smxx/prefix_grad.h"
#include "cuda/smxx/prefix_pool.h"
#include "cuda/smxx/prefix_scan.h"

namespace attn::cuda {

template <class T, class Run> void prefix_pool_steps(const PrefixWork& w, Run&& run) {
  run(PrefixSums<T, false>(), w);
  run(PrefixScan(), PrefixScanParams{w, false});
  run(PrefixRows<T>(), w);
}

template <class T, class Run> void prefix_pool_backward_steps(const PrefixGradWork& g, Run&& run) {
  const PrefixPoolParams& p = g.f.p;
  BackwardParams rows{};
  rows.forward.batch = p.batch;
  rows.forward.heads = p.heads;
  rows.forward.tq = p.tokens;
  rows.forward.dim_v = p.dim;
  rows.forward.out = p.out;
  rows.forward.lse = static_cast<float*>(p.lse);
  rows.dout = g.dout;
  rows.dlse = g.dlse;
  rows.delta = g.own;
  run(AttendDelta<T>(), rows);
  run(PrefixSums<T, true>(), g);
  run(PrefixScan(), PrefixScanParams{g.f, true});
  run(PrefixGradients<T>(), g);
}

}  // namespace attn::cuda
