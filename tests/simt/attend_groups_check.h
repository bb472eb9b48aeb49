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

// Layouts of both block sizes, with and without each thing that one may have.
inline std::vector<AttendOptions> served_layouts() {
  std::vector<AttendOptions> all;
  for (int64_t block : {64, 128}) {
    for (int variant = 0; variant < 4; ++variant) {
      AttendOptions& o = all.emplace_back(plain(260, 330, block));
      ScheduleOptions& s = o.schedule;
      s.kind = ScheduleKind::layout;
      s.heads = 2;
      s.heads_kv = 1 + variant % 2;
      s.block_q = variant < 2 ? 128 : 64;
      s.block_k = block;
      s.density = variant == 3 ? 0.2 : 0.7;
      s.full_list = variant != 1;
      s.bits = variant != 2;
      s.causal = variant == 2;
      s.shared_heads = variant % 2 == 0;
      o.sinks = o.gate = variant == 3;
      o.dlse = variant == 1;
    }
  }
  return all;
}

// A call for AnyIndices: a layout or a packed batch, by the round causal or not.
inline AttendOptions any_indices_call(int round) {
  AttendOptions o = plain(130, 200);
  ScheduleOptions& s = o.schedule;
  s.kind = round % 2 ? ScheduleKind::layout : ScheduleKind::range;
  s.block_q = s.block_k = 64;
  s.full_list = s.bits = true;
  s.causal = round % 4 > 1;
  if (s.kind == ScheduleKind::range) s.cu_q = {0, 60, 130}, s.cu_k = {0, 80, 200};
  return o;
}

}  // namespace attn
