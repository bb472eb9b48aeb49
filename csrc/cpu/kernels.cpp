// Compiled once per instruction set (cmake/kernels.cmake): everything it includes lives in that set's namespace.
#include "cpu/kernels.h"

#include "cpu/merge_states.h"

ATTN_NAMESPACE_BEGIN

extern const Kernels kernel_table;
const Kernels kernel_table = {
    .attend_forward = run_attend_forward,
    .attend_backward = run_attend_backward,
    .hip_select = run_hip_select,
    .merge_states = merge_states,
    .merge_states_backward = merge_states_backward,
    .pool = pool_kernels,
    .scan = scan_kernels,
};

ATTN_NAMESPACE_END
