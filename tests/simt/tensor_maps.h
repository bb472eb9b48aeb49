// Tensor maps of a test's tensors: on the host what tests/simt reads, on the device (tests/device) the driver's.
#pragma once

#include "cuda/sm90/key_pieces.h"
#include "cuda/sm90/serves.h"
#if defined(__CUDACC__)
#include "cuda/sm90/tensor_map.h"
#endif

namespace attn {

inline seam::TensorMap map_of(const View4& x, const cuda::TiledShape& s, int rows = cuda::kPieceKeys) {
#if defined(__CUDACC__)
  // Either type of 16 bits: what is loaded isn't converted.
  return cuda::tensor_map("kernel under test", DType::bf16, x.data, s, rows);
#else
  return {x.data, {s.size[0], s.size[1], s.size[2], s.size[3]}, {s.stride[0], s.stride[1], s.stride[2]}, rows};
#endif
}

}  // namespace attn
