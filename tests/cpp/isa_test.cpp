#include "cpu/isa.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace attn {
namespace {

TEST(Isa, NamesAreUnique) {
  for (Isa a : kAllIsas) {
    for (Isa b : kAllIsas) EXPECT_EQ(a == b, std::string(isa_name(a)) == isa_name(b));
  }
}

TEST(Isa, ThisCpuRunsTheBest) {
  const CpuId cpu = read_cpuid();
  const std::vector<Isa> available = available_isas(cpu);
  ASSERT_FALSE(available.empty());
  EXPECT_EQ(choose_isa(nullptr, cpu), available.back());
  EXPECT_EQ(choose_isa("", cpu), available.back());
}

TEST(Isa, RequestIsHonoured) {
  const CpuId cpu = read_cpuid();
  for (Isa isa : available_isas(cpu)) EXPECT_EQ(choose_isa(isa_name(isa), cpu), isa);
}

std::string refusal(const char* request, const CpuId& cpu) {
  try {
    choose_isa(request, cpu);
  } catch (const std::runtime_error& error) { return error.what(); }
  return "";
}

TEST(Isa, UnknownRequestNamesTheAvailable) {
  const CpuId cpu = read_cpuid();
  const std::string text = refusal("sse9", cpu);
  EXPECT_NE(text.find("ATTN_CPU_ISA=sse9: no such instruction set"), std::string::npos) << text;
  for (Isa isa : available_isas(cpu)) EXPECT_NE(text.find(isa_name(isa)), std::string::npos) << text;
}

#if defined(__x86_64__)

// A CPU with everything, whose operating system saves all of it.
CpuId full() {
  CpuId cpu;
  cpu.leaf1_ecx = bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_CMPXCHG16B | bit_AVX | bit_FMA |
                  bit_F16C | bit_OSXSAVE;
  cpu.leaf7_ebx = bit_AVX2 | bit_BMI | bit_BMI2 | bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  cpu.leaf7_1_eax = bit_AVX512BF16;
  cpu.leaf80000001_ecx = bit_LZCNT;
  cpu.xcr0 = 0xe7;
  return cpu;
}

// The best set such a CPU can run, whether or not this build has kernels for it.
Isa best(const CpuId& cpu) {
  Isa found = Isa::neon;
  for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (cpu_supports(isa, cpu)) found = isa;
  }
  return found;
}

TEST(Isa, FullCpuRunsEverySet) {
  EXPECT_EQ(best(full()), Isa::avx512bf16);
  EXPECT_FALSE(cpu_supports(Isa::neon, full()));
}

TEST(Isa, EachMissingFeatureRulesOutItsSets) {
  CpuId cpu = full();
  cpu.leaf7_1_eax = 0;
  EXPECT_EQ(best(cpu), Isa::avx512);
  cpu.leaf7_ebx &= ~bit_AVX512VL;
  EXPECT_EQ(best(cpu), Isa::avx2);
  cpu.leaf1_ecx &= ~bit_FMA;
  EXPECT_EQ(best(cpu), Isa::generic);
  cpu.leaf1_ecx &= ~bit_SSE4_2;
  EXPECT_NE(refusal(nullptr, cpu).find("no kernels for this CPU"), std::string::npos);
}

TEST(Isa, RequestForWhatTheCpuLacksIsRefused) {
  const CpuId none;
  for (Isa isa : available_isas(full())) {
    CpuId cpu = full();
    cpu.leaf7_ebx = 0;  // x86-64-v2 only
    if (!cpu_supports(isa, cpu) && !available_isas(cpu).empty()) {
      EXPECT_NE(refusal(isa_name(isa), cpu).find("this CPU lacks it"), std::string::npos) << isa_name(isa);
    }
    EXPECT_NE(refusal(isa_name(isa), none), "") << isa_name(isa);
  }
}

// A virtual machine or kernel that does not save a register file makes its instructions unusable whatever cpuid says.
TEST(Isa, OperatingSystemMustSaveTheRegisters) {
  CpuId cpu = full();
  cpu.xcr0 = 0x07;  // YMM but no ZMM state
  EXPECT_EQ(best(cpu), Isa::avx2);
  cpu.xcr0 = 0x03;  // SSE only
  EXPECT_EQ(best(cpu), Isa::generic);
  cpu = full();
  cpu.leaf1_ecx &= ~bit_OSXSAVE;
  EXPECT_EQ(best(cpu), Isa::generic);
}

#endif

}  // namespace
}  // namespace attn
