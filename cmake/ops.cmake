# libattn_ops.so (kernels and op registration on the libtorch stable ABI) and the small pybind11 module _C.

# One line per op file; csrc/ops/register.cpp holds the schemas.
set(ATTN_OPS_SOURCES
  csrc/ops/attend.cpp
  csrc/ops/attend_args.cpp
  csrc/ops/attend_run.cpp
  csrc/ops/block_sparse.cpp
  csrc/ops/decode.cpp
  csrc/ops/flow.cpp
  csrc/ops/hip.cpp
  csrc/ops/layout_args.cpp
  csrc/ops/linear.cpp
  csrc/ops/merge.cpp
  csrc/ops/parallel.cpp
  csrc/ops/pool_axis_gate.cpp
  csrc/ops/pool_nodes.cpp
  csrc/ops/pool_ponet.cpp
  csrc/ops/pool_query.cpp
  csrc/ops/pool_segment.cpp
  csrc/ops/pool_tap.cpp
  csrc/ops/pool_window.cpp
  csrc/ops/prefix.cpp
  csrc/ops/register.cpp
  csrc/ops/s2.cpp)

find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)

# Paths by asking Python, not find_package(Torch): that one asks for the CUDA toolkit torch was built with and injects flags.
execute_process(COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/torch_paths.py
  OUTPUT_VARIABLE torch_found RESULT_VARIABLE torch_result ERROR_VARIABLE torch_error)
if(NOT torch_result EQUAL 0)
  message(FATAL_ERROR "${torch_error}")
endif()
list(GET torch_found 0 ATTN_TORCH_DIR)
list(GET torch_found 1 ATTN_TORCH_VERSION)
message(STATUS "torch ${ATTN_TORCH_VERSION} headers: ${ATTN_TORCH_DIR}")
if(ATTN_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "torch ${ATTN_TORCH_VERSION} is too old: attn needs torch >= 2.10 (stable ABI)")
endif()

add_library(attn_torch INTERFACE)
target_include_directories(attn_torch SYSTEM INTERFACE ${ATTN_TORCH_DIR}/include)
# 2.10 is the oldest torch that the one library runs on; newer names do not compile under this target.
target_compile_definitions(attn_torch INTERFACE TORCH_TARGET_VERSION=0x020A000000000000)
target_compile_options(attn_torch INTERFACE -ffile-prefix-map=${ATTN_TORCH_DIR}=torch)
target_link_libraries(attn_torch INTERFACE ${ATTN_TORCH_DIR}/lib/libtorch_cpu.so ${ATTN_TORCH_DIR}/lib/libc10.so)

add_library(attn_ops MODULE ${ATTN_OPS_SOURCES})
target_link_libraries(attn_ops PRIVATE attn_kernels attn_torch)
if(ATTN_SANITIZE)
  target_compile_options(attn_ops PRIVATE -O1)
else()
  target_compile_options(attn_ops PRIVATE -O2)
endif()
target_link_options(attn_ops PRIVATE -Wl,--as-needed -Wl,--no-undefined
  -Wl,--version-script=${CMAKE_CURRENT_LIST_DIR}/hide_all.map)

execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
  OUTPUT_VARIABLE pybind11_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_package(pybind11 3.0 CONFIG REQUIRED)
pybind11_add_module(_C MODULE csrc/module.cpp)
target_link_libraries(_C PRIVATE attn_isa)
target_compile_definitions(_C PRIVATE
  ATTN_VERSION="${ATTN_VERSION}" ATTN_TORCH_VERSION="${ATTN_TORCH_VERSION}" ATTN_ISAS="${ATTN_ISAS_TEXT}"
  ATTN_STABLE_ABI="2.10" ATTN_BUILD_TYPE="$<CONFIG>")
target_compile_options(_C PRIVATE -ffile-prefix-map=${pybind11_INCLUDE_DIR}=pybind11)

if(ATTN_INPLACE)
  set_target_properties(attn_ops _C PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_SOURCE_DIR}/python/attn)
else()
  install(TARGETS attn_ops _C LIBRARY DESTINATION attn)
endif()
