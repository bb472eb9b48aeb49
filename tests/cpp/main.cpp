#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "cpu/isa.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    attn::selected_isa();
  } catch (const std::runtime_error& error) {
    // CTest's SKIP_RETURN_CODE: the instruction set asked for is in the build but not in this CPU.
    std::fprintf(stderr, "%s\n", error.what());
    return 77;
  }
  return RUN_ALL_TESTS();
}
