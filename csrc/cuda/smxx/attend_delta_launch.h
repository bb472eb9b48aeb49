#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/smxx/attend_delta.h"

namespace attn::cuda {

template <DType kType> void launch_attend_delta(const BackwardParams& b, Stream stream) {
  launch<AttendDelta<Element<kType>>>("attention backward, delta", b, stream);
}

template <DType kType> void launch_sink_gradients(const BackwardParams& b, Stream stream) {
  launch<SinkGradients<Element<kType>>>("attention backward, sinks", b, stream);
}

}  // namespace attn::cuda
