// What sm_90a adds to the seam: mbarriers, TMA loads, products of a warpgroup (wgmma). Its own header, as the device
// side needs CUTLASS. Warp functions are for all 32 lanes, warpgroup functions for 128 threads from a multiple of 128.
//
//   init_barrier(Barrier&, int arrivals)             one thread; then publish_barriers() by it, then sync_block()
//   arrive_warp(Barrier&)                            warp; one arrival, after what any of its lanes has done
//   arrive_warp_expecting(Barrier&, int bytes)       the same; the phase lasts until so many bytes have come, too
//   wait_barrier(Barrier&, int parity)               warp; until the phase of that parity is over, 0 the first
//   load_box(void* shared, const TensorMap&, Barrier&, int feature, int token, int head, int batch)
//     one thread; a box of the map, its bytes count for the barrier; what lies outside of the tensor is zeros
//   publish_shared()                                 what the thread wrote to shared memory, for wgmma after a barrier
//   arrive_named(id, threads)                        counts for sync_named without waiting
//   more_registers<n>(), fewer_registers<n>()        warpgroup; registers of each of its threads from here on
//
// Products of a warpgroup, 64 rows of which warp w has 16 from 16 w. d and a lie in registers as for mma:
// d[n][2 i + c] = D[g + 8 i][8 n + 2 t + c], (g, t) = (lane / 4, lane % 4). They run while the threads go on: d and a
// are out of bounds until group_wait.
//
//   group_begin(d...)                                before each group: registers are as the thread left them
//   group_mma<T, n>(d, OperandK a, OperandK b, bool accumulate)   64 x n x 16
//   group_mma<T, n>(d, const uint32_t (&a)[4], OperandMn b)       accumulates
//   group_commit()                                   ends the group
//   group_wait<groups left>(d...)                    names the results of those that are over
#pragma once

#include "cuda/seam.h"

namespace attn::seam {

// mbarrier, in shared memory.
struct alignas(8) Barrier { uint64_t state; };

// Operands lie in shared memory in panels: rows of 128 bytes (64 elements), swizzled, from a multiple of 1024 bytes.
// That is how a box of TMA arrives, and SharedRows<T, 64, rows>.
constexpr int kPanelElements = 64;
// 16 elements of each of the operand's rows, from `start` of the first row on; products run along rows.
struct OperandK { const void* start; };
// 16 rows of a panel, and the same of the panels that follow, `panel` bytes apart: B[k][n] is element n of row k.
struct OperandMn {
  const void* start;
  int panel;
};

}  // namespace attn::seam

#if defined(__CUDACC__)
#include "cuda/seam_sm90_device.h"
#else
#include "simt/seam_sm90_host.h"
#endif
