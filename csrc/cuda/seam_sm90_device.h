// The sm_90a part of the seam on the device, on CUTLASS's wrappers of single instructions.
#pragma once

#include <cuda.h>

#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

namespace attn::seam {

namespace gmma = cute::SM90::GMMA;

struct TensorMap { CUtensorMap map; };

ATTN_DEVICE void init_barrier(Barrier& b, int arrivals) {
  cutlass::arch::ClusterBarrier::init(&b.state, static_cast<uint32_t>(arrivals));
}
ATTN_DEVICE void publish_barriers() { cutlass::arch::fence_barrier_init(); }
ATTN_DEVICE void arrive_warp(Barrier& b) {
  __syncwarp();
  if (lane() == 0) cutlass::arch::ClusterBarrier::arrive(&b.state);
}
ATTN_DEVICE void arrive_warp_expecting(Barrier& b, int bytes) {
  __syncwarp();
  if (lane() == 0)
    cutlass::arch::ClusterTransactionBarrier::arrive_and_expect_tx(&b.state, static_cast<uint32_t>(bytes));
}
ATTN_DEVICE void wait_barrier(Barrier& b, int parity) {
  cutlass::arch::ClusterBarrier::wait(&b.state, static_cast<uint32_t>(parity));
  __syncwarp();
}
ATTN_DEVICE void load_box(void* shared, const TensorMap& map, Barrier& b, int feature, int token, int head, int batch) {
  constexpr auto hint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);
  cute::SM90_TMA_LOAD_4D::copy(&map.map, &b.state, hint, shared, feature, token, head, batch);
}
ATTN_DEVICE void publish_shared() { cutlass::arch::fence_view_async_shared(); }
ATTN_DEVICE void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
template <int kRegisters> ATTN_DEVICE void more_registers() { cutlass::arch::warpgroup_reg_alloc<kRegisters>(); }
template <int kRegisters> ATTN_DEVICE void fewer_registers() { cutlass::arch::warpgroup_reg_dealloc<kRegisters>(); }

// Bytes in units of 16, of which an address has 14 bits. Eight rows of a panel are 1024 bytes.
ATTN_DEVICE uint64_t descriptor(const void* start, int next_features) {
  cute::GmmaDescriptor d;
  d.bitfield.start_address_ = static_cast<uint16_t>(shared_address(start) >> 4);
  d.bitfield.leading_byte_offset_ = static_cast<uint16_t>(next_features >> 4);
  d.bitfield.stride_byte_offset_ = 1024 >> 4;
  d.bitfield.base_offset_ = 0;
  d.bitfield.layout_type_ = static_cast<uint8_t>(gmma::LayoutType::B128);
  return d;
}

template <class T, int kN> struct GroupMma;
#define ATTN_GROUP_MMA(T, name, n)                                                                 \
  template <> struct GroupMma<T, n> {                                                              \
    using Shared = gmma::MMA_64x##n##x16_F32##name##name##_SS<gmma::Major::K, gmma::Major::K>;     \
    using Registers = gmma::MMA_64x##n##x16_F32##name##name##_RS<gmma::Major::K, gmma::Major::MN>; \
  };
ATTN_GROUP_MMA(Bf16, BF16, 64)
ATTN_GROUP_MMA(Bf16, BF16, 128)
ATTN_GROUP_MMA(F16, F16, 64)
ATTN_GROUP_MMA(F16, F16, 128)
#undef ATTN_GROUP_MMA

// To the compiler the registers are written here, neither before nor after.
template <int kN> ATTN_DEVICE void pin(float (&d)[kN][4]) {
  ATTN_UNROLL
  for (int n = 0; n < kN; ++n) {
    ATTN_UNROLL
    for (int e = 0; e < 4; ++e) cute::warpgroup_fence_operand(d[n][e]);
  }
}

template <class... D> ATTN_DEVICE void group_begin(D&... d) {
  (pin(d), ...);
  cute::warpgroup_arrive();
}
template <class Mma, int kN, size_t... i>
ATTN_DEVICE void issue(float (&d)[kN][4], uint64_t a, uint64_t b, bool accumulate, std::index_sequence<i...>) {
  Mma::fma(a, b, d[i / 4][i % 4]..., accumulate ? gmma::ScaleOut::One : gmma::ScaleOut::Zero);
}
template <class Mma, int kN, size_t... i>
ATTN_DEVICE void issue(float (&d)[kN][4], const uint32_t (&a)[4], uint64_t b, std::index_sequence<i...>) {
  Mma::fma(a[0], a[1], a[2], a[3], b, d[i / 4][i % 4]..., gmma::ScaleOut::One);
}
template <class T, int kN> ATTN_DEVICE void group_mma(float (&d)[kN / 8][4], OperandK a, OperandK b, bool accumulate) {
  issue<typename GroupMma<T, kN>::Shared>(d, descriptor(a.start, 16), descriptor(b.start, 16), accumulate,
                                          std::make_index_sequence<kN / 2>());
}
template <class T, int kN> ATTN_DEVICE void group_mma(float (&d)[kN / 8][4], const uint32_t (&a)[4], OperandMn b) {
  issue<typename GroupMma<T, kN>::Registers>(d, a, descriptor(b.start, b.panel), std::make_index_sequence<kN / 2>());
}
ATTN_DEVICE void group_commit() { cute::warpgroup_commit_batch(); }
template <int kLeft, class... D> ATTN_DEVICE void group_wait(D&... d) {
  cute::warpgroup_wait<kLeft>();
  (pin(d), ...);
}

}  // namespace attn::seam
