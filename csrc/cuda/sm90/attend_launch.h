#pragma once

#include "cuda/kernel.h"
#include "cuda/launchers.h"
#include "cuda/sm90/attend_forward.h"
#include "cuda/sm90/tensor_map.h"

namespace attn::cuda {

template <DType kType, int kDim> void launch_attend_groups(const AttendParams& p, Stream stream) {
  constexpr const char* what = "attention forward (sm_90a)";
  const AttendGroupsParams all{p, tensor_map(what, p.dtype, p.k.data, tiled_keys(p, p.k), kPieceKeys),
                               tensor_map(what, p.dtype, p.v.data, tiled_keys(p, p.v), kPieceKeys)};
  launch<AttendGroups<Element<kType>, kDim>>(what, all, stream);
}

}  // namespace attn::cuda
