// Calls at the edges, which the tests of every backend run.
#pragma once

#include <vector>

#include "attend_case.h"

namespace attn {

// One head of each.
inline AttendOptions one_head(int64_t tq, int64_t tk) {
  AttendOptions o;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tq = tq;
  o.schedule.tk = tk;
  return o;
}

// No batch, no rows, no keys; each plain and with what still has a value there.
inline std::vector<AttendOptions> empty_inputs() {
  std::vector<AttendOptions> all;
  for (int which = 0; which < 3; ++which) {
    AttendOptions o;
    if (which == 0) o.schedule.batch = 0;
    if (which == 1) o.schedule.tq = 0;
    if (which == 2) o.schedule.tk = 0;
    all.push_back(o);
    o.sinks = o.key_weights = o.gate = true;
    all.push_back(o);
  }
  return all;
}

// Every modifier at once on every schedule, and on a packed batch, several query heads to a kv head.
inline std::vector<AttendOptions> every_modifier() {
  std::vector<AttendOptions> all;
  for (int kind = 0; kind < 5; ++kind) {
    AttendOptions o;
    ScheduleOptions& s = o.schedule;
    s.kind = static_cast<ScheduleKind>(kind % 4);
    s.heads = 4;
    s.tq = s.tk = 150;
    s.causal = true;
    s.left = kind == 2 ? -1 : 40;
    s.sink = 3;
    s.full_list = s.bits = true;
    s.shared_heads = kind == 1;
    if (kind == 4) {
      s.batch = 1;
      s.cu_q = {0, 0, 40, 41, 140};
      s.cu_k = {0, 5, 90, 90, 150};
    }
    o.dim = o.dim_v = 62;
    o.softcap = 2.5;
    o.segments = o.key_weights = o.sinks = o.gate = true;
    all.push_back(o);
  }
  return all;
}

}  // namespace attn
