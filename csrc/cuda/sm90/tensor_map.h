// A tensor map for TMA, encoded on the host by the driver: reads no memory of the tensor, so that calls can be captured
// in a CUDA graph. The driver's function is asked for at run time: nothing is linked with libcuda, and the library
// loads where there is none.
#pragma once

#include <cuda.h>

#include "cuda/refuse.h"
#include "cuda/seam_sm90.h"
#include "cuda/sm90/serves.h"

namespace attn::cuda {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline EncodeTiled find_encode_tiled(const char* what) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
  check_result(what,
               cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status));
#else
  check_result(what, cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status));
#endif
  if (status != cudaDriverEntryPointSuccess) check_result(what, cudaErrorInsufficientDriver);
  return reinterpret_cast<EncodeTiled>(found);
}

// Of 16-bit elements, in boxes of one panel's features by `rows` tokens, swizzled by 128 bytes; zeros past its end.
inline seam::TensorMap tensor_map(const char* what, DType type, void* data, const TiledShape& shape, int rows) {
  static const EncodeTiled encode = find_encode_tiled(what);
  cuuint64_t size[4], stride[3];
  for (int i = 0; i < 4; ++i) size[i] = static_cast<cuuint64_t>(shape.size[i]);
  for (int i = 0; i < 3; ++i) stride[i] = static_cast<cuuint64_t>(shape.stride[i]);
  const cuuint32_t box[4] = {seam::kPanelElements, static_cast<cuuint32_t>(rows), 1, 1}, step[4] = {1, 1, 1, 1};
  seam::TensorMap map;
  const CUresult result =
      encode(&map.map, type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
             data, size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) check_result(what, cudaErrorInvalidValue);
  return map;
}

}  // namespace attn::cuda
