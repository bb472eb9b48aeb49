// Lets the tests of tests/simt run their kernels on a GPU: included before everything else (nvcc -include), it stands
// in for simt/runner.h. What a test allocates is managed memory (managed_memory.cpp), so parameters that point into its
// vectors are valid on the device too. Barriers and races are compute-sanitizer's to find.
#pragma once

#include "cuda/kernel.h"

namespace attn::simt {

// Order of a block's threads on the host; the GPU has its own.
enum class Order { forward, backward, mixed };

template <class K> void launch(const typename K::Params& params, Order = Order::forward) {
  cuda::launch<K>("kernel under test", params, nullptr);
  cuda::check_result("kernel under test", cudaDeviceSynchronize());
}

}  // namespace attn::simt
