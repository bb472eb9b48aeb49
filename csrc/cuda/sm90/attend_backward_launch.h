#pragma once

#include "cuda/sm90/attend_launch.h"
#include "cuda/sm90/key_gradients.h"

namespace attn::cuda {

template <DType kType, int kDim> void launch_group_gradients(const BackwardParams& b, Stream stream) {
  constexpr const char *queries = "attention backward, dQ (sm_90a)", *keys = "attention backward, dK and dV (sm_90a)";
  const AttendParams& p = b.forward;
  const GroupGradientsParams all{b, tensor_map(queries, p.dtype, p.q.data, tiled_rows(p, p.q), kTileRows),
                                 tensor_map(queries, p.dtype, b.dout.data, tiled_rows(p, b.dout), kTileRows),
                                 tensor_map(queries, p.dtype, p.k.data, tiled_keys(p, p.k), kPieceKeys),
                                 tensor_map(queries, p.dtype, p.v.data, tiled_keys(p, p.v), kPieceKeys)};
  launch<QueryGroups<Element<kType>, kDim>>(queries, all, stream);
  launch<KeyGroups<Element<kType>, kDim>>(keys, all, stream);
}

}  // namespace attn::cuda
