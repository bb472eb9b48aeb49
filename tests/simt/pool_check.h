// What tests of the CUDA pool kernels share.
#pragma once

#include "../cpp/pool_case.h"
#include "cuda/element.h"
#include "cuda/vectors.h"

namespace attn {

template <class E> using PoolElement = cuda::Element<E::dtype>;

// Scratch memory as csrc/ops allocates it, NaN.
struct PoolScratch {
  std::vector<float> data;

  explicit PoolScratch(int64_t floats) : data(floats, std::nanf("")) {}
  float* at(int64_t i) { return data.data() + i; }
};

// Elements as bits: results of two runs are the same or not.
template <class E> inline bool same_bits(const PoolResult<E>& a, const PoolResult<E>& b) {
  return a.data.size() == b.data.size() &&
         std::memcmp(a.data.data(), b.data.data(), a.data.size() * sizeof(a.data[0])) == 0;
}

}  // namespace attn
