#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace attn {
namespace {

constexpr bool compiled(Isa isa) {
  switch (isa) {
#define ATTN_ISA_ROW(name) \
  case Isa::name: return true;
#include "attn_isas.inc"
#undef ATTN_ISA_ROW
    default: return false;
  }
}

constexpr bool has(uint64_t word, uint64_t bits) { return (word & bits) == bits; }

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512bf16emu: return "avx512bf16emu";
    case Isa::generic: return "generic";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::neon: return "neon";
  }
  return "unknown";
}

CpuId read_cpuid() {
  CpuId cpu;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d)) cpu.leaf1_ecx = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    cpu.leaf7_ebx = b;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) cpu.leaf7_1_eax = a;
  }
  if (__get_cpuid(0x80000001, &a, &b, &c, &d)) cpu.leaf80000001_ecx = c;
  if (has(cpu.leaf1_ecx, bit_OSXSAVE)) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    cpu.xcr0 = (static_cast<uint64_t>(high) << 32) | low;
  }
#endif
  return cpu;
}

bool cpu_supports(Isa isa, const CpuId& cpu) {
#if defined(__x86_64__)
  // Bits of XCR0: SSE 1, AVX 2, opmask 5, upper halves of ZMM0-15 6, ZMM16-31 7.
  const bool saves_ymm = has(cpu.leaf1_ecx, bit_OSXSAVE) && has(cpu.xcr0, 0x06);
  const bool saves_zmm = saves_ymm && has(cpu.xcr0, 0xe6);
  const bool v2 = has(cpu.leaf1_ecx, bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_CMPXCHG16B);
  const bool avx2 = v2 && saves_ymm && has(cpu.leaf1_ecx, bit_AVX | bit_FMA | bit_F16C) &&
                    has(cpu.leaf7_ebx, bit_AVX2 | bit_BMI | bit_BMI2) && has(cpu.leaf80000001_ecx, bit_LZCNT);
  const bool avx512 = avx2 && saves_zmm && has(cpu.leaf7_ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ);
  switch (isa) {
    case Isa::generic: return v2;
    case Isa::avx2:
    case Isa::avx512bf16emu: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512bf16: return avx512 && has(cpu.leaf7_1_eax, bit_AVX512BF16);
    default: return false;
  }
#elif defined(__aarch64__)
  (void)cpu;
  return isa == Isa::neon;  // part of the base architecture
#else
  (void)cpu;
  return isa == Isa::generic;
#endif
}

std::vector<Isa> available_isas(const CpuId& cpu) {
  std::vector<Isa> isas;
  for (Isa isa : kAllIsas) {
    if (compiled(isa) && cpu_supports(isa, cpu)) isas.push_back(isa);
  }
  return isas;
}

Isa choose_isa(const char* request, const CpuId& cpu) {
  const std::vector<Isa> available = available_isas(cpu);
  if (available.empty()) throw std::runtime_error("attn: no kernels for this CPU (x86-64-v2 or ARMv8 is needed)");
  const std::string wanted = request ? request : "";
  if (wanted.empty()) return available.back();
  for (Isa isa : available) {
    if (wanted == isa_name(isa)) return isa;
  }
  const char* reason = "no such instruction set";
  for (Isa isa : kAllIsas) {
    if (wanted != isa_name(isa)) continue;
    reason = compiled(isa) ? "this CPU lacks it" : "this build has no kernels for it";
  }
  throw std::runtime_error("attn: ATTN_CPU_ISA=" + wanted + ": " + reason + "; available: " + names(available));
}

Isa selected_isa() {
  static const Isa isa = choose_isa(std::getenv("ATTN_CPU_ISA"), read_cpuid());
  return isa;
}

}  // namespace attn
