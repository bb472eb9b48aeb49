// Compiled once per instruction set: prefix-softmax pooling.
#include "cpu/by_dtype.h"
#include "cpu/kernels.h"
#include "cpu/prefix_pool.h"

ATTN_NAMESPACE_BEGIN

void run_prefix_pool_forward(const PrefixPoolParams& params) {
  scan::run_by_dtype<scan::PrefixPoolForward>(params.dtype, params);
}
void run_prefix_pool_backward(const PrefixPoolBackwardParams& params) {
  scan::run_by_dtype<scan::PrefixPoolBackward>(params.forward.dtype, params);
}

ATTN_NAMESPACE_END
