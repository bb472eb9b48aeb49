// What tests of the sm_90a kernels that attend share: calls that these kernels serve, and tensor maps for them.
#pragma once

#include "attend_check.h"
#include "tensor_maps.h"

namespace attn {

// What the kernel serves of the CPU test's random calls.
inline AttendOptions served(AttendOptions o, std::mt19937& random) {
  o.dim = o.dim_v = random() % 4 ? 64 : 128;
  o.gap = random() % 2 ? 8 : 0;
  o.softcap = 0;
  o.segments = o.key_weights = o.skip_gated = false;
  o.page = 0;
  ScheduleOptions& s = o.schedule;
  s.sink = 0;
  s.tq = std::max<int64_t>(s.tq, 17);
  s.tk = std::max<int64_t>(s.tk, s.kind == ScheduleKind::strided ? s.tq : 1);
  if (s.kind == ScheduleKind::layout || s.kind == ScheduleKind::strided) {
    s.block_q = s.kind == ScheduleKind::layout && random() % 2 ? 128 : 64;
    s.block_k = s.kind == ScheduleKind::layout ? 64 << random() % 3 : 64;
  }
  return o;
}
inline AttendOptions served_call(std::mt19937& random) {
  for (;;) {
    const AttendOptions o = small_call(random);
    if (o.schedule.kind == ScheduleKind::gathered) continue;
    if (o.schedule.cu_q.empty()) return served(o, random);
    if (o.schedule.tq > 0 && o.schedule.tk > 0) {
      AttendOptions packed = served(o, random);
      packed.schedule.tq = o.schedule.tq;
      packed.schedule.tk = o.schedule.tk;
      return packed;
    }
  }
}

inline AttendOptions plain(int64_t tq, int64_t tk, int64_t dim = 64) {
  AttendOptions o = one_head(tq, tk);
  o.dim = o.dim_v = dim;
  o.gap = 8;
  return o;
}

}  // namespace attn
