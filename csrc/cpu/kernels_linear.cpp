// Compiled once per instruction set: linear attention.
#include "cpu/kernels.h"
#include "cpu/linear_backward.h"
#include "cpu/linear_forward.h"

ATTN_NAMESPACE_BEGIN

void run_linear_forward(const LinearParams& params) { scan::linear_forward(params); }
void run_linear_backward(const LinearBackwardParams& params) { scan::linear_backward(params); }

ATTN_NAMESPACE_END
