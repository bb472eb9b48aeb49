// Compiled once per instruction set: linear attention.
#include "cpu/by_dtype.h"
#include "cpu/kernels.h"
#include "cpu/linear_backward.h"
#include "cpu/linear_forward.h"

ATTN_NAMESPACE_BEGIN

void run_linear_forward(const LinearParams& params) { scan::run_by_dtype<scan::LinearForward>(params.dtype, params); }
void run_linear_backward(const LinearBackwardParams& params) {
  scan::run_by_dtype<scan::LinearBackward>(params.forward.dtype, params);
}

ATTN_NAMESPACE_END
