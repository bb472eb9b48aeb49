// Compiled once per instruction set: attention forward. Its own translation unit, like every kernel family, so that a
// change recompiles little.
#include "cpu/attend_call.h"
#include "cpu/kernels.h"

ATTN_NAMESPACE_BEGIN

void run_attend_forward(const AttendParams& params) { attend_forward(params); }

ATTN_NAMESPACE_END
