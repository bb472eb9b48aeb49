// Compiled once per instruction set: attention backward. Its own translation unit, like every kernel family, so that a
// change recompiles little.
#include "cpu/attend_backward_call.h"
#include "cpu/kernels.h"

ATTN_NAMESPACE_BEGIN

void run_attend_backward(const AttendBackwardParams& params) { attend_backward(params); }

ATTN_NAMESPACE_END
