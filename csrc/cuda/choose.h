// How launch*.cu choose an instantiation, and how they refuse.
#pragma once

#include <sstream>
#include <stdexcept>

#include "cuda/launch.h"

namespace attn::cuda {

template <class... Parts> [[noreturn]] void refuse(const char* what, const Parts&... parts) {
  std::ostringstream text;
  text << what << " on CUDA: ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

[[noreturn]] void refuse_dtype(const char* what, DType given);

// A launcher takes the parameters of its op and a stream.
template <class Params> using Launcher = void (*)(const Params&, Stream);

// The instantiation with the fewest features of a row that hold the head dimensions: Family::of<kDim> for a kDim of
// ATTN_CUDA_HEAD_DIMS, which every kernel with a kDim has.
template <class Family> auto by_dim(const char* what, const char* whose, int64_t dim) {
#define ATTN_CUDA_DIM(kDim) \
  if (dim <= kDim) return Family::template of<kDim>;
#include "attn_cuda_dims.inc"
#undef ATTN_CUDA_DIM
  int most = 0;
#define ATTN_CUDA_DIM(kDim) most = kDim;
#include "attn_cuda_dims.inc"
#undef ATTN_CUDA_DIM
  refuse(what, "head dimensions of ", whose, " must be at most ", most, ", got ", dim, "; move the tensors to the CPU");
}

// Family::of<kType>.
template <class Family> auto by_type(const char* what, DType type) {
  switch (type) {
    case DType::f32: return Family::template of<DType::f32>;
    case DType::bf16: return Family::template of<DType::bf16>;
    case DType::f16: return Family::template of<DType::f16>;
    default: refuse_dtype(what, type);
  }
}

// Of<kType>::of<kDim>.
template <template <DType> class Of> struct ByDim {
  template <DType kType> static constexpr auto of = &by_dim<Of<kType>>;
};
template <template <DType> class Of> auto by_type_and_dim(const char* what, const char* whose, DType type,
                                                          int64_t dim) {
  return by_type<ByDim<Of>>(what, type)(what, whose, dim);
}

}  // namespace attn::cuda
