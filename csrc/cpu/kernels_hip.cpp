// Compiled once per instruction set: HiP's selection.
#include "cpu/hip_select.h"
#include "cpu/kernels.h"

ATTN_NAMESPACE_BEGIN

void run_hip_select(const SelectParams& params) { hip_select(params); }

ATTN_NAMESPACE_END
