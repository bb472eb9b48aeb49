# attn_kernels: the CPU backend without torch, usable from C++ and by the C++ tests.

# Compiled once per instruction set.
set(ATTN_ISA_SOURCES
  csrc/cpu/kernels.cpp
  csrc/cpu/kernels_attend.cpp
  csrc/cpu/kernels_attend_backward.cpp
  csrc/cpu/kernels_flow.cpp
  csrc/cpu/kernels_hip.cpp
  csrc/cpu/kernels_linear.cpp
  csrc/cpu/kernels_pool.cpp
  csrc/cpu/kernels_prefix.cpp
  csrc/cpu/kernels_query_pool.cpp)
# Compiled once.
set(ATTN_COMMON_SOURCES
  csrc/cpu/dispatch.cpp
  csrc/cpu/dispatch_pool.cpp
  csrc/cpu/dispatch_scan.cpp
  csrc/cpu/layout_lists.cpp
  csrc/cpu/parallel.cpp
  csrc/cpu/scratch.cpp)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(avx2 -march=x86-64-v2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  attn_add_isa(generic VBYTES 16 FLAGS -march=x86-64-v2 SOURCES ${ATTN_ISA_SOURCES})
  attn_add_isa(avx2 VBYTES 32 FLAGS ${avx2} SOURCES ${ATTN_ISA_SOURCES})
  attn_add_isa(avx512 VBYTES 64 FLAGS ${avx512} SOURCES ${ATTN_ISA_SOURCES})
  attn_add_isa(avx512bf16 VBYTES 64 BF16_DOT FLAGS ${avx512} -mavx512bf16 SOURCES ${ATTN_ISA_SOURCES})
  if(ATTN_EMULATE)
    # The 64-byte kernels' logic on a CPU without AVX-512: the compiler splits each vector in two.
    attn_add_isa(avx512bf16emu VBYTES 64 BF16_DOT FLAGS ${avx2} SOURCES ${ATTN_ISA_SOURCES})
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  attn_add_isa(neon VBYTES 16 FLAGS -march=armv8-a SOURCES ${ATTN_ISA_SOURCES})
else()
  attn_add_isa(generic VBYTES 16 SOURCES ${ATTN_ISA_SOURCES})
endif()

list(JOIN ATTN_ISAS " " ATTN_ISAS_TEXT)

# Its own library because _C reports on it without holding kernels.
add_library(attn_isa STATIC csrc/cpu/isa.cpp)
target_link_libraries(attn_isa PUBLIC attn_flags)
list(TRANSFORM ATTN_ISAS REPLACE "(.+)" "ATTN_ISA_ROW(\\1)" OUTPUT_VARIABLE isa_rows)
list(JOIN isa_rows "\n" isa_rows)
file(CONFIGURE OUTPUT generated/attn_isas.inc CONTENT "${isa_rows}\n")
target_include_directories(attn_isa PUBLIC ${PROJECT_BINARY_DIR}/generated)

add_library(attn_kernels STATIC ${ATTN_COMMON_SOURCES})
target_link_libraries(attn_kernels PUBLIC attn_isa attn_flags Threads::Threads)
foreach(isa IN LISTS ATTN_ISAS)
  target_sources(attn_kernels PRIVATE $<TARGET_OBJECTS:attn_isa_${isa}>)
endforeach()
