# Paths by asking Python, not find_package(Torch): that one asks for the CUDA toolkit torch was built with and injects flags.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
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
