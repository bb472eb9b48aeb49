// Everything a CUDA kernel asks of the machine goes through these functions; what is left of a kernel is C++. On the
// device they are PTX and intrinsics (seam_device.h); under test they are host code in which a thread is a fiber
// (tests/simt). Warp functions are for all 32 lanes.
//
//   int thread(), lane(), warp(), block_x(), block_y(), block_z()
//
//   sync_block(), sync_warp(), sync_named(id, threads)     id 1..15, threads a multiple of 32
//
//   T shuffle(T, source_lane), T shuffle_xor(T, mask), uint32_t ballot(bool), bool any(bool),
//   int32_t reduce_add(int32_t), uint32_t popcount(uint32_t)
//
//   mma<T>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])    m16n8k16, T = Bf16 or F16, c += a b
//   mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2])        m16n8k8 of what tf32(float) returned
//
//   ldmatrix4(uint32_t (&r)[4], const void* row), ldmatrix4_transposed(...)  row: 16 bytes of shared memory
//   uint32_t load_word(const uint32_t* shared)                               a read that stays where it stands
//   uint32_t zero_after(const float (&x)[4])                                 0, once x is known
//   copy16_async(void* shared, const void* global, int bytes)                0 to 16 bytes, the rest zeros
//   copy_commit(), copy_wait<groups left>()
//
//   float to_float(T), T from_float<T>(float), uint32_t pack<T>(float low, float high)
//   uint32_t bits_of(float), float float_of(uint32_t), float exp2_fast(float)
//   P load_whole<P>(const void*), store_whole(void*, P)    at most 16 bytes, aligned to their size
#pragma once

#include <cstdint>

#include "attn/types.h"

namespace attn::seam {

// Elements as they lie in memory.
struct Bf16 { uint16_t bits; };
struct F16 { uint16_t bits; };

}  // namespace attn::seam

// Before a loop: arrays indexed by its counter stay in registers; or: its code is kept once.
#if defined(__CUDACC__)
#define ATTN_UNROLL _Pragma("unroll")
#define ATTN_ROLLED _Pragma("unroll 1")
#else
#define ATTN_UNROLL
#define ATTN_ROLLED
#endif

#if defined(__CUDACC__)
#include "cuda/seam_device.h"
#else
#include "simt/seam_host.h"
#endif
