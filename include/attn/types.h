// Vocabulary shared by every header of the library: element types, strided views, and the macros that let one
// source serve the host, the device and several CPU instruction sets.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ATTN_HD __host__ __device__ __forceinline__
#else
#define ATTN_HD inline
#endif

// Functions in shared headers are compiled once per CPU instruction set. They live in an inline namespace named
// after it, so that the linker can never merge a copy built with AVX-512 into code that runs on an older CPU.
#ifndef ATTN_ISA
#define ATTN_ISA base
#endif
#define ATTN_NAMESPACE_BEGIN \
  namespace attn {           \
  inline namespace ATTN_ISA {
#define ATTN_NAMESPACE_END \
  }                        \
  }

namespace attn {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// A [batch, head, token, feature] tensor whose last dimension is contiguous. Strides count elements.
struct View4 {
  void* data;  // null: absent
  int64_t batch, head, token;
};

// A [batch, head, token] tensor of scalars; any stride may be 0 (broadcast). Strides count elements.
struct View3 {
  void* data;  // null: absent
  int64_t batch, head, token;
};

// A [batch, token] tensor of bool, one byte each, non-zero = keep. Strides count elements.
struct MaskView {
  const uint8_t* data;  // null: every token is kept
  int64_t batch, token;
};

// A [batch, token] tensor of int32 ids. Strides count elements.
struct IdView {
  const int32_t* data;  // null: absent
  int64_t batch, token;
};

}  // namespace attn
