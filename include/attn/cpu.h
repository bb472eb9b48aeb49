// Entry points of the CPU backend. They run on the threads of parallel.h and throw only std::bad_alloc.
#pragma once

#include "attn/params.h"

namespace attn::cpu {

// Writes every row of out and lse, except rows past the last sequence of a packed batch.
void attend_forward(const AttendParams& params);

// Writes every row of the gradients asked for, except rows and keys past the last sequence of a packed batch.
void attend_backward(const AttendBackwardParams& params);

// Fills index and count.
void hip_select(const SelectParams& params);

}  // namespace attn::cpu
