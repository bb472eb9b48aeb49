# attn_flags: what every target of ours compiles with (an interface target, so that gtest and pybind11 do not inherit it).
add_library(attn_flags INTERFACE)
target_include_directories(attn_flags INTERFACE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/csrc)
target_compile_options(attn_flags INTERFACE
  -Wall -Wextra
  # GCC notes that passing 64-byte vectors by value changed ABI; our vector types never cross a translation unit.
  -Wno-psabi
  # __FILE__ and assertion texts must not carry paths of the build machine into a wheel.
  -ffile-prefix-map=${PROJECT_SOURCE_DIR}=attn
  -ffile-prefix-map=${PROJECT_BINARY_DIR}=build)
if(ATTN_WERROR)
  target_compile_options(attn_flags INTERFACE -Werror)
endif()
if(ATTN_SANITIZE)
  target_compile_options(attn_flags INTERFACE -fsanitize=${ATTN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  target_link_options(attn_flags INTERFACE -fsanitize=${ATTN_SANITIZE})
  # Scratch memory is reused, which hides it from AddressSanitizer: its old contents are overwritten instead.
  target_compile_definitions(attn_flags INTERFACE ATTN_POISON_SCRATCH)
endif()
