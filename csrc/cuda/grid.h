// How many blocks a kernel wants. Each kernel says so itself, from its parameters alone (K::grid), so that the launch
// on a GPU and the one under test are the same.
#pragma once

#include <cstdint>

namespace attn::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;

  bool empty() const { return x == 0 || y == 0 || z == 0; }
  // What CUDA can launch.
  bool fits() const { return x <= INT32_MAX && y <= 65535 && z <= 65535; }
};

}  // namespace attn::cuda
