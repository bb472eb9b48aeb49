# attn_add_isa(<name> VBYTES <16|32|64> [BF16_DOT] [FLAGS <flags...>] SOURCES <sources...>)
# Compiles the same sources once more for one instruction set, into the object library attn_isa_<name>. VBYTES is the
# width of its vectors, BF16_DOT says that it multiplies bf16 pairs (csrc/cpu/simd.h).
# ATTN_ISA names the inline namespace around that code, so that no function is shared between sets; the C++ test
# isa_symbols checks that none escapes. -march=native is never used: a wheel must run on another machine.
set(ATTN_CPU_ISAS "" CACHE STRING "Build these instruction sets only, e.g. avx2; empty: all (a wheel needs all)")
set(ATTN_ISAS "")
function(attn_add_isa name)
  if(ATTN_CPU_ISAS AND NOT name IN_LIST ATTN_CPU_ISAS)
    return()
  endif()
  cmake_parse_arguments(arg "BF16_DOT" "VBYTES" "FLAGS;SOURCES" ${ARGN})
  add_library(attn_isa_${name} OBJECT ${arg_SOURCES})
  target_link_libraries(attn_isa_${name} PRIVATE attn_flags)
  target_compile_definitions(attn_isa_${name} PRIVATE
    ATTN_ISA=${name} ATTN_VBYTES=${arg_VBYTES} ATTN_BF16_DOT=$<BOOL:${arg_BF16_DOT}>)
  target_compile_options(attn_isa_${name} PRIVATE ${arg_FLAGS})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's own AVX-512 headers start from undefined vectors and trip this warning (GCC bug 105593).
    target_compile_options(attn_isa_${name} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  if(NOT ATTN_SANITIZE)
    # A fused multiply-add is what the micro-kernels are written for; errno of expf and friends is never read.
    target_compile_options(attn_isa_${name} PRIVATE -O3 -ffp-contract=fast -fno-math-errno)
  else()
    target_compile_options(attn_isa_${name} PRIVATE -O1 -ffp-contract=fast -fno-math-errno)
  endif()
  set(ATTN_ISAS ${ATTN_ISAS} ${name} PARENT_SCOPE)
endfunction()
