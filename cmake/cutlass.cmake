# CUTLASS's headers, for the kernels of sm_90a: CUTLASS_DIR (CMake's or the environment's), else those of an installed
# nvidia-cutlass. Empty where there are none.
set(ATTN_CUDA_SM90A AUTO CACHE STRING "Kernels for sm_90a: AUTO (where CUDA kernels for 9.0 are built and CUTLASS is found), ON, OFF")
set_property(CACHE ATTN_CUDA_SM90A PROPERTY STRINGS AUTO ON OFF)
set(CUTLASS_DIR "" CACHE PATH "CUTLASS's sources; empty: $CUTLASS_DIR, or an installed nvidia-cutlass")
if(NOT ATTN_CUDA_SM90A MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "ATTN_CUDA_SM90A must be AUTO, ON or OFF, got ${ATTN_CUDA_SM90A}")
endif()
set(ATTN_CUTLASS_INCLUDE "")
if(NOT ATTN_CUDA_SM90A STREQUAL "OFF")
  find_package(Python QUIET COMPONENTS Interpreter)
  set(command ${CMAKE_COMMAND} -E env)
  if(CUTLASS_DIR)
    list(APPEND command CUTLASS_DIR=${CUTLASS_DIR})
  endif()
  execute_process(COMMAND ${command} ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/cutlass_path.py
    OUTPUT_VARIABLE ATTN_CUTLASS_INCLUDE RESULT_VARIABLE result ERROR_QUIET)
  if(NOT result EQUAL 0)
    set(ATTN_CUTLASS_INCLUDE "")
    if(ATTN_CUDA_SM90A STREQUAL "ON")
      message(FATAL_ERROR "ATTN_CUDA_SM90A=ON needs CUTLASS's headers, and found none. Install them into the Python of this "
        "build (${Python_EXECUTABLE}): pip install nvidia-cutlass==4.2.0.0, or give their place: -DCUTLASS_DIR=...; or build "
        "without these kernels: -DATTN_CUDA_SM90A=OFF")
    endif()
  endif()
endif()
