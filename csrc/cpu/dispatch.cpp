// Entry points of the CPU backend: each forwards to the table row of the instruction set in use.
#include <stdexcept>

#include "attn/cpu.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace attn {

// attn_isas.inc holds ATTN_ISA_ROW(<name>) for every instruction set of this build; CMake writes it.
#define ATTN_ISA_ROW(name)           \
  namespace name {                   \
  extern const Kernels kernel_table; \
  }
#include "attn_isas.inc"
#undef ATTN_ISA_ROW

namespace {

const Kernels& table(Isa isa) {
  switch (isa) {
#define ATTN_ISA_ROW(name) \
  case Isa::name: return name::kernel_table;
#include "attn_isas.inc"
#undef ATTN_ISA_ROW
    default: throw std::logic_error("attn: no kernels for the chosen instruction set");
  }
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = table(selected_isa());
  return chosen;
}

namespace cpu {

void attend_forward(const AttendParams& params) { kernels().attend_forward(params); }
void attend_backward(const AttendBackwardParams& params) { kernels().attend_backward(params); }
void hip_select(const SelectParams& params) { kernels().hip_select(params); }

void merge_states(const MergeStatesParams& params) { kernels().merge_states(params); }
void merge_states_backward(const MergeStatesBackwardParams& params) { kernels().merge_states_backward(params); }

}  // namespace cpu
}  // namespace attn
