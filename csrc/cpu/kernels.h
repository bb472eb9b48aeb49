// The table of CPU kernels: one row per instruction set, each filled by csrc/cpu/kernels.cpp compiled for that set.
// Nothing else crosses between code compiled once and code compiled per set.
#pragma once

#include "attn/merge.h"

namespace attn {

struct Kernels {
  void (*merge_states)(const MergeStatesParams&);
  void (*merge_states_backward)(const MergeStatesBackwardParams&);
};

// The row in use, chosen once (isa.h).
const Kernels& kernels();

}  // namespace attn
