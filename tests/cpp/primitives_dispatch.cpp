#include <stdexcept>

#include "cpu/isa.h"
#include "primitives.h"

namespace attn {

#define ATTN_ISA_ROW(name)                     \
  namespace name {                             \
  extern const PrimitiveTable primitive_table; \
  }
#include "attn_isas.inc"
#undef ATTN_ISA_ROW

const PrimitiveTable& primitives() {
  switch (selected_isa()) {
#define ATTN_ISA_ROW(name) \
  case Isa::name: return name::primitive_table;
#include "attn_isas.inc"
#undef ATTN_ISA_ROW
    default: throw std::logic_error("no primitives for the chosen instruction set");
  }
}

}  // namespace attn
