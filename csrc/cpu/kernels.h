// The table of CPU kernels: one row per instruction set, each filled by csrc/cpu/kernels.cpp compiled for that set.
// Nothing else crosses between code compiled once and code compiled per set.
#pragma once

#include "attn/merge.h"
#include "attn/params.h"
#include "cpu/kernels_pool.h"
#include "cpu/kernels_scan.h"

namespace attn {

struct Kernels {
  void (*attend_forward)(const AttendParams&);
  void (*attend_backward)(const AttendBackwardParams&);
  void (*hip_select)(const SelectParams&);
  void (*merge_states)(const MergeStatesParams&);
  void (*merge_states_backward)(const MergeStatesBackwardParams&);
  PoolKernels pool;
  ScanKernels scan;
};

// The row in use, chosen once (isa.h).
const Kernels& kernels();

}  // namespace attn

ATTN_NAMESPACE_BEGIN

// Entries of the table that have a translation unit of their own, kernels_<family>.cpp.
void run_attend_forward(const AttendParams& params);
void run_attend_backward(const AttendBackwardParams& params);
void run_hip_select(const SelectParams& params);

ATTN_NAMESPACE_END
