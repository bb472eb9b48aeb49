// Compiled once per instruction set: pooling by queries.
#include "cpu/kernels.h"
#include "cpu/query_pool.h"

ATTN_NAMESPACE_BEGIN

void run_query_pool_forward(const QueryPoolParams& params) { query_pool_forward(params); }
void run_query_pool_backward(const QueryPoolBackwardParams& params) { query_pool_backward(params); }

ATTN_NAMESPACE_END
