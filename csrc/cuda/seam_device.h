// The seam on the device, sm_80 and later.
#pragma once

#include <cuda_fp16.h>

#define ATTN_DEVICE __device__ __forceinline__

namespace attn::seam {

ATTN_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
ATTN_DEVICE int lane() { return static_cast<int>(threadIdx.x % 32); }
ATTN_DEVICE int warp() { return static_cast<int>(threadIdx.x / 32); }
ATTN_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
ATTN_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
ATTN_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }

ATTN_DEVICE void sync_block() { __syncthreads(); }
ATTN_DEVICE void sync_warp() { __syncwarp(); }
ATTN_DEVICE void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <class T> ATTN_DEVICE T shuffle(T x, int source) { return __shfl_sync(0xffffffffu, x, source); }
template <class T> ATTN_DEVICE T shuffle_xor(T x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
ATTN_DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
ATTN_DEVICE bool any(bool x) { return __any_sync(0xffffffffu, x); }
ATTN_DEVICE int32_t reduce_add(int32_t x) { return __reduce_add_sync(0xffffffffu, x); }
ATTN_DEVICE uint32_t popcount(uint32_t x) { return static_cast<uint32_t>(__popc(x)); }

ATTN_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

template <class T> ATTN_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <> ATTN_DEVICE void mma<Bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> ATTN_DEVICE void mma<F16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

ATTN_DEVICE float tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
ATTN_DEVICE void mma_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

ATTN_DEVICE void ldmatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
ATTN_DEVICE void ldmatrix4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// A read in C++ would be moved far ahead of its use, with those of many products before them.
ATTN_DEVICE uint32_t load_word(const uint32_t* shared) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(shared_address(shared)) : "memory");
  return x;
}

ATTN_DEVICE void copy16_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
ATTN_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft> ATTN_DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory"); }

// P is aligned to its size, at most 16 bytes: one instruction.
template <class P> ATTN_DEVICE P load_whole(const void* p) { return *static_cast<const P*>(p); }
template <class P> ATTN_DEVICE void store_whole(void* p, const P& x) { *static_cast<P*>(p) = x; }

ATTN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
ATTN_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

// Compilers put off what nothing waits for, here for as long as there are registers and longer. This is 0, which they
// can't know: no GPU has 2^31 SMs.
ATTN_DEVICE uint32_t zero_after(const float (&x)[4]) {
  uint32_t zero;
  asm("{.reg .u32 sm; mov.u32 sm, %%smid; shr.u32 %0, sm, 31;}" : "=r"(zero));
  return (bits_of(x[0]) | bits_of(x[1]) | bits_of(x[2]) | bits_of(x[3])) & (0 - zero);
}

ATTN_DEVICE float to_float(float x) { return x; }
ATTN_DEVICE double to_float(double x) { return x; }
ATTN_DEVICE float to_float(Bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
ATTN_DEVICE float to_float(F16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T> ATTN_DEVICE T from_float(float x);
template <> ATTN_DEVICE float from_float<float>(float x) { return x; }
template <> ATTN_DEVICE F16 from_float<F16>(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
template <> ATTN_DEVICE Bf16 from_float<Bf16>(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
}
template <class T> ATTN_DEVICE uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <> ATTN_DEVICE uint32_t pack<Bf16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

ATTN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace attn::seam
