// main() of device_tests, and operator new in memory that the host and the GPU share.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace {

// Never given back: tests allocate a few hundred MiB in all.
constexpr size_t kArena = size_t{8} << 30;
char* arena = nullptr;  // null until main: CUDA isn't there yet
std::atomic<size_t> used{0};

void* take(size_t bytes) {
  if (!arena) {
    void* p = std::malloc(bytes ? bytes : 1);
    if (!p) throw std::bad_alloc();
    return p;
  }
  const size_t at = used.fetch_add((bytes + 63) / 64 * 64 + 64);
  if (at + bytes > kArena) throw std::bad_alloc();
  return arena + at;
}

void give(void* p) noexcept {
  const char* at = static_cast<char*>(p);
  if (!arena || at < arena || at >= arena + kArena) std::free(p);
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
  const cudaError_t result = cudaMallocManaged(&shared, kArena);
  if (result != cudaSuccess) {
    std::fprintf(stderr, "device_tests needs a GPU with managed memory: %s\n", cudaGetErrorString(result));
    return 77;
  }
  arena = static_cast<char*>(shared);
  return RUN_ALL_TESTS();
}
