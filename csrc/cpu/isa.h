// Which instruction sets this library holds kernels for, which of them the CPU has, and the one in use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace attn {

// In ascending order of preference; names are those given to attn_add_isa in cmake/kernels.cmake. The emulated set
// comes first: tests ask for it by name, nothing else chooses them.
enum class Isa { avx512bf16emu, generic, avx2, avx512, avx512bf16, neon };

constexpr Isa kAllIsas[] = {Isa::avx512bf16emu, Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::neon};

const char* isa_name(Isa isa);

// What decides support on x86: cpuid registers, and XCR0, the register state the operating system saves. All zero
// elsewhere.
struct CpuId {
  uint32_t leaf1_ecx = 0;
  uint32_t leaf7_ebx = 0;
  uint32_t leaf7_1_eax = 0;
  uint32_t leaf80000001_ecx = 0;
  uint64_t xcr0 = 0;
};

CpuId read_cpuid();

bool cpu_supports(Isa isa, const CpuId& cpu);

// Instruction sets compiled into this library that `cpu` can run, ascending.
std::vector<Isa> available_isas(const CpuId& cpu);

// The best available set, or the one named by `request` (null or empty: none). Throws std::runtime_error for a name
// that is unknown, not compiled in, or that the CPU lacks.
Isa choose_isa(const char* request, const CpuId& cpu);

// The choice for this process, made at the first call. The environment variable ATTN_CPU_ISA is the request.
Isa selected_isa();

}  // namespace attn
