// Attention backward: delta, then dQ over the schedule, then dK and dV over key ranges.
#pragma once

#include "cpu/attend_key_grad.h"
#include "cpu/attend_query_grad.h"

ATTN_NAMESPACE_BEGIN

template <class In> inline void attend_backward_as(const AttendBackwardParams& b) {
  const BackwardRows<In> state(b);
  state.compute();
  if (b.dsink_logits) state.sink_gradients();
  query_gradients(b, state);
  key_gradients(b, state);
}

inline void attend_backward(const AttendBackwardParams& b) {
  switch (b.forward.dtype) {
    case DType::f32: return attend_backward_as<float>(b);
    case DType::f64: return attend_backward_as<double>(b);
    case DType::bf16: return attend_backward_as<bf16>(b);
    case DType::f16: return attend_backward_as<f16>(b);
  }
}

ATTN_NAMESPACE_END
