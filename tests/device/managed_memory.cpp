// main() of device_tests, and operator new in memory that the host and the GPU share.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

namespace {

// Never given back: tests allocate a few hundred MiB in all.
constexpr size_t kArena = size_t{8} << 30;
size_t arena_bytes = 0;
char* arena = nullptr;  // null until main: CUDA isn't there yet
std::atomic<size_t> used{0};

void* take(size_t bytes) {
  if (!arena) {
    void* p = std::malloc(bytes ? bytes : 1);
    if (!p) throw std::bad_alloc();
    return p;
  }
  const size_t at = used.fetch_add((bytes + 63) / 64 * 64 + 64);
  if (at + bytes > arena_bytes) throw std::bad_alloc();
  return arena + at;
}

void give(void* p) noexcept {
  const char* at = static_cast<char*>(p);
  if (!arena || at < arena || at >= arena + arena_bytes) std::free(p);
}

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void operator delete(void* p) noexcept { give(p); }
void operator delete[](void* p) noexcept { give(p); }
void operator delete(void* p, size_t) noexcept { give(p); }
void operator delete[](void* p, size_t) noexcept { give(p); }

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
  void* shared = nullptr;
  size_t unused = 0, all = 0;
  cudaDeviceProp device{};
  cudaError_t result = cudaGetDeviceProperties(&device, 0);
  if (result == cudaSuccess) result = cudaMemGetInfo(&unused, &all);
  // More than is free would move between host and GPU all the time; several processes run tests.
  arena_bytes = std::min(kArena, unused / 8);
  if (result == cudaSuccess) result = cudaMallocManaged(&shared, arena_bytes);
  if (result != cudaSuccess) {
    std::fprintf(stderr, "device_tests needs a GPU with managed memory: %s\n", cudaGetErrorString(result));
    return 77;
  }
  if (device.major != 9 || device.minor != 0) {
    std::printf("sm_%d%d: tests of kernels for sm_90a are left out\n", device.major, device.minor);
    std::string& filter = testing::GTEST_FLAG(filter);
    filter += (filter.find('-') == std::string::npos ? "-" : ":") + std::string("SimtAttendGroups*:SimtGroup*");
  }
  arena = static_cast<char*>(shared);
  return RUN_ALL_TESTS();
}
