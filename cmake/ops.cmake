# libattn_ops.so (kernels and op registration on the libtorch stable ABI) and the small pybind11 module _C.

# One line per op file; csrc/ops/register.cpp holds the schemas.
set(ATTN_OPS_SOURCES
  csrc/ops/attend.cpp
  csrc/ops/attend_args.cpp
  csrc/ops/attend_run.cpp
  csrc/ops/backend.cpp
  csrc/ops/block_sparse.cpp
  csrc/ops/decode.cpp
  csrc/ops/flow.cpp
  csrc/ops/hip.cpp
  csrc/ops/layout.cpp
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

add_library(attn_ops MODULE ${ATTN_OPS_SOURCES})
target_link_libraries(attn_ops PRIVATE attn_kernels attn_torch)
target_compile_definitions(attn_ops PRIVATE ATTN_HAS_CUDA=$<BOOL:${ATTN_HAS_CUDA}>)
if(ATTN_HAS_CUDA)
  target_sources(attn_ops PRIVATE ${ATTN_CUDA_OBJECTS})
  target_link_libraries(attn_ops PRIVATE CUDA::cudart_static)
  # The C++ compiler links: the kernels need no device linking, and its options are set below.
  set_target_properties(attn_ops PROPERTIES LINKER_LANGUAGE CXX CUDA_RESOLVE_DEVICE_SYMBOLS OFF)
endif()
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
list(JOIN ATTN_CUDA_HEAD_DIMS " " ATTN_CUDA_HEAD_DIMS_TEXT)
target_compile_definitions(_C PRIVATE
  ATTN_VERSION="${ATTN_VERSION}" ATTN_TORCH_VERSION="${ATTN_TORCH_VERSION}" ATTN_ISAS="${ATTN_ISAS_TEXT}"
  ATTN_CUDA_ARCHS="${ATTN_CUDA_ARCHS_TEXT}" ATTN_CUDA_HEAD_DIMS="${ATTN_CUDA_HEAD_DIMS_TEXT}"
  ATTN_STABLE_ABI="2.10" ATTN_BUILD_TYPE="$<CONFIG>")
target_compile_options(_C PRIVATE -ffile-prefix-map=${pybind11_INCLUDE_DIR}=pybind11)

if(ATTN_INPLACE)
  set_target_properties(attn_ops _C PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_SOURCE_DIR}/python/attn)
else()
  install(TARGETS attn_ops _C LIBRARY DESTINATION attn)
endif()
