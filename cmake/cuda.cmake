# The CUDA backend: attn_cuda, an object library without torch. Without it the library has the same ops and refuses CUDA
# tensors with a reason. AUTO builds it where it can be used and built: the torch found is a CUDA build (without torch,
# for C++ alone, that is no condition), there is an nvcc, and the build isn't sanitized (that one is about the host, where
# tests/simt runs kernels).
set(ATTN_CUDA AUTO CACHE STRING "CUDA kernels: AUTO (where nvcc and a CUDA build of torch are found), ON, OFF")
set_property(CACHE ATTN_CUDA PROPERTY STRINGS AUTO ON OFF)
# No kernel uses an instruction newer than sm_80's. Code for sm_80 runs on every 8.x GPU; 9.x needs its own, as code of
# another major version doesn't load; the PTX of 9.0 serves what comes after (10.x, 12.x), compiled by the driver once.
set(ATTN_CUDA_ARCHS "80-real;90" CACHE STRING "GPU architectures, in CMake's notation (80-real: code only, 90: code and PTX)")
# Features of a row in shared memory: a call takes the smallest that holds its head dimensions. More of them: less
# waste for odd sizes, longer builds.
set(ATTN_CUDA_HEAD_DIMS "64;128;256" CACHE STRING "Head dimensions with kernels of their own, multiples of 64, ascending")
set(ATTN_HAS_CUDA OFF)

if(NOT ATTN_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "ATTN_CUDA must be AUTO, ON or OFF, got ${ATTN_CUDA}")
endif()
set(last 0)
foreach(dim IN LISTS ATTN_CUDA_HEAD_DIMS)
  math(EXPR rest "${dim} % 64")
  if(NOT rest EQUAL 0 OR NOT dim GREATER last OR dim GREATER 256)
    message(FATAL_ERROR "ATTN_CUDA_HEAD_DIMS must be ascending multiples of 64 up to 256, got ${ATTN_CUDA_HEAD_DIMS}")
  endif()
  set(last ${dim})
endforeach()

# attn_cuda_instances(<header> <function> TYPES <...> [DIMS <...>])
# A row of the table of instantiations: one source of a few lines per type and head dimension, so that they build side by
# side and ccache sees each for itself. The header defines `template <DType kType[, int kDim]> void function(...)`, which
# csrc/cuda/launchers.h declares. tests/static compiles all rows as one source, whether they are built here or not.
set(ATTN_CUDA_SOURCES csrc/cuda/launch.cu csrc/cuda/launch_pool.cu)
set(ATTN_CUDA_ROWS "")
function(attn_cuda_instances header function)
  cmake_parse_arguments(arg "" "" "TYPES;DIMS" ${ARGN})
  if(NOT arg_DIMS)
    set(arg_DIMS none)
  endif()
  foreach(type IN LISTS arg_TYPES)
    foreach(dim IN LISTS arg_DIMS)
      if(dim STREQUAL "none")
        set(arguments "DType::${type}")
        set(name generated/cuda/${function}_${type}.cu)
      else()
        set(arguments "DType::${type}, ${dim}")
        set(name generated/cuda/${function}_${type}_${dim}.cu)
      endif()
      set(row "#include \"${header}\"\nnamespace attn::cuda {\n")
      string(APPEND row "template decltype(${function}<${arguments}>) ${function}<${arguments}>;\n}\n")
      file(CONFIGURE OUTPUT ${name} CONTENT "${row}")
      string(APPEND ATTN_CUDA_ROWS "${row}")
      list(APPEND ATTN_CUDA_SOURCES ${PROJECT_BINARY_DIR}/${name})
    endforeach()
  endforeach()
  set(ATTN_CUDA_SOURCES ${ATTN_CUDA_SOURCES} PARENT_SCOPE)
  set(ATTN_CUDA_ROWS "${ATTN_CUDA_ROWS}" PARENT_SCOPE)
endfunction()

attn_cuda_instances(cuda/sm80/attend_launch.h launch_attend_forward TYPES bf16 f16 DIMS ${ATTN_CUDA_HEAD_DIMS})
attn_cuda_instances(cuda/sm80/decode_launch.h launch_decode TYPES bf16 f16 DIMS ${ATTN_CUDA_HEAD_DIMS})
attn_cuda_instances(cuda/sm80/hip_launch.h launch_hip_select TYPES f32 bf16 f16 DIMS ${ATTN_CUDA_HEAD_DIMS})
attn_cuda_instances(cuda/smxx/merge_launch.h launch_merge_splits TYPES bf16 f16)
attn_cuda_instances(cuda/sm80/attend_backward_launch.h launch_attend_gradients TYPES bf16 f16 DIMS ${ATTN_CUDA_HEAD_DIMS})
attn_cuda_instances(cuda/smxx/attend_delta_launch.h launch_attend_delta TYPES bf16 f16)
attn_cuda_instances(cuda/smxx/attend_delta_launch.h launch_sink_gradients TYPES f32)
attn_cuda_instances(cuda/smxx/merge_launch.h launch_merge_states TYPES f32 bf16 f16)
attn_cuda_instances(cuda/smxx/merge_launch.h launch_merge_states_backward TYPES f32 bf16 f16)
attn_cuda_instances(cuda/smxx/axis_gate_launch.h launch_axis_gate_forward TYPES f32 bf16 f16)
attn_cuda_instances(cuda/smxx/axis_gate_launch.h launch_axis_gate_backward TYPES f32 bf16 f16)
attn_cuda_instances(cuda/sm80/query_pool_launch.h launch_query_pool_forward TYPES f32 bf16 f16)
attn_cuda_instances(cuda/sm80/query_pool_launch.h launch_query_pool_backward TYPES f32 bf16 f16)
# No op calls these yet: compiled by tests/static only.
string(APPEND ATTN_CUDA_ROWS "#include \"cuda/smxx/layout_launch.h\"\n")
file(CONFIGURE OUTPUT generated/cuda_kernels.cu CONTENT "${ATTN_CUDA_ROWS}")

if(ATTN_CUDA STREQUAL "OFF")
  return()
endif()
if(ATTN_CUDA STREQUAL "AUTO")
  if(ATTN_SANITIZE)
    return()
  endif()
  if(ATTN_PYTHON AND NOT EXISTS ${ATTN_TORCH_DIR}/lib/libtorch_cuda.so)
    message(STATUS "CUDA kernels: not built (torch ${ATTN_TORCH_VERSION} has no CUDA; -DATTN_CUDA=ON builds them all the same)")
    return()
  endif()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${ATTN_CUDA_ARCHS})
endif()
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  find_package(CUDAToolkit QUIET)
endif()
if(NOT CMAKE_CUDA_COMPILER OR NOT TARGET CUDA::cudart_static OR CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  set(found "no nvcc")
  if(CMAKE_CUDA_COMPILER)
    set(found "${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, static runtime: ${CUDA_cudart_static_LIBRARY}")
  endif()
  if(ATTN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ATTN_CUDA=ON needs nvcc >= 12.0 with its static runtime (found: ${found}). Put nvcc on PATH or set "
      "CUDACXX, or build without CUDA kernels: -DATTN_CUDA=OFF")
  endif()
  message(STATUS "CUDA kernels: not built (${found}); CUDA tensors will be refused with that reason")
  return()
endif()
set(ATTN_HAS_CUDA ON)
message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}, "
  "head dimensions ${ATTN_CUDA_HEAD_DIMS}")
if(ATTN_CCACHE AND NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${ATTN_CCACHE})
endif()

list(TRANSFORM ATTN_CUDA_HEAD_DIMS REPLACE "(.+)" "ATTN_CUDA_DIM(\\1)" OUTPUT_VARIABLE dim_rows)
list(JOIN dim_rows "\n" dim_rows)
file(CONFIGURE OUTPUT generated/attn_cuda_dims.inc CONTENT "${dim_rows}\n")

add_library(attn_cuda OBJECT ${ATTN_CUDA_SOURCES})
target_include_directories(attn_cuda PRIVATE include csrc ${PROJECT_BINARY_DIR}/generated)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " ATTN_CUDA_ARCHS_TEXT)
# ATTN_ISA: functions shared with the CPU kernels are not shared in the library.
target_compile_definitions(attn_cuda PRIVATE ATTN_ISA=device "ATTN_CUDA_ARCHS=\"${ATTN_CUDA_ARCHS_TEXT}\"")
set_target_properties(attn_cuda PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
target_compile_options(attn_cuda PRIVATE
  -Xcompiler=-Wall,-ffile-prefix-map=${PROJECT_SOURCE_DIR}=attn,-ffile-prefix-map=${PROJECT_BINARY_DIR}=build
  # A kernel that spills is a mistake: the table in tests/static says how many registers each may use.
  -Xptxas=--warn-on-spills $<$<BOOL:${ATTN_WERROR}>:-Werror=all-warnings>)
