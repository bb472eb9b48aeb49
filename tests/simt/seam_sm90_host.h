// The sm_90a part of the seam under test: what cuda/seam_sm90.h lists.
#pragma once

#include <type_traits>

#include "simt/async.h"

namespace attn::seam {

using TensorMap = simt::TiledTensor;

inline void init_barrier(Barrier& b, int arrivals, const Where& where = Where::current()) {
  simt::mbarrier_init(&b, arrivals, where);
}
inline void publish_barriers() { simt::mbarrier_publish_init(); }
inline void arrive_warp(Barrier& b, const Where& where = Where::current()) {
  sync_warp(where);
  if (lane() == 0) simt::mbarrier_arrive(&b, 0, where);
}
inline void arrive_warp_expecting(Barrier& b, int bytes, const Where& where = Where::current()) {
  sync_warp(where);
  if (lane() == 0) simt::mbarrier_arrive(&b, bytes, where);
}
inline void wait_barrier(Barrier& b, int parity, const Where& where = Where::current()) {
  simt::meet("wait_barrier", nullptr, [](void* const*) {}, where);
  simt::mbarrier_wait(&b, parity, where);
}
inline void load_box(void* shared, const TensorMap& map, Barrier& b, int feature, int token, int head, int batch,
                     const Where& where = Where::current()) {
  simt::tma_load(shared, map, &b, {feature, token, head, batch}, where);
}
inline void publish_shared() {
  if (simt::Shadow* s = simt::shadow()) s->fence(thread());
}
inline void arrive_named(int id, int threads, const Where& where = Where::current()) {
  if (id == 0) simt::fail("arrive_named(0): barrier 0 belongs to sync_block");
  simt::barrier(id, threads, where, false);
}
template <int kRegisters> void more_registers() { static_assert(kRegisters % 8 == 0 && kRegisters <= 256); }
template <int kRegisters> void fewer_registers() { static_assert(kRegisters % 8 == 0 && kRegisters >= 24); }

template <class... D> void group_begin(D&...) { simt::group_begin(Where::current()); }
template <class T, int kN>
void group_mma(float (&d)[kN / 8][4], OperandK a, OperandK b, bool accumulate, const Where& where = Where::current()) {
  simt::group_product(
      {&d[0][0], nullptr, {a.start, false, 0}, {b.start, false, 0}, kN, std::is_same_v<T, Bf16>, accumulate}, where);
}
template <class T, int kN>
void group_mma(float (&d)[kN / 8][4], const uint32_t (&a)[4], OperandMn b, const Where& where = Where::current()) {
  simt::group_product({&d[0][0], a, {}, {b.start, true, b.panel}, kN, std::is_same_v<T, Bf16>, true}, where);
}
inline void group_commit(const Where& where = Where::current()) { simt::group_commit(where); }
template <int kLeft, class... D> void group_wait(D&... d) {
  const simt::Registers named[] = {{nullptr, nullptr}, {&d[0][0], &d[0][0] + sizeof(d) / sizeof(float)}...};
  simt::group_wait(kLeft, named, static_cast<int>(sizeof...(d)) + 1, Where::current());
}

}  // namespace attn::seam
