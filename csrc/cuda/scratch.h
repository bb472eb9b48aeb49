// Scratch memory of a call, taken piece by piece in one function that both counts and hands out: without memory it only
// counts. Unit: float. Pieces begin on 64 bytes of it.
#pragma once

#include <cstdint>

namespace attn::cuda {

class ScratchPieces {
 public:
  explicit ScratchPieces(float* memory = nullptr) : memory_(memory) {}
  // Null for no elements, and where it counts.
  template <class T = float> T* take(int64_t n) {
    float* at = memory_ ? memory_ + used_ : nullptr;
    used_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 16;
    return n > 0 ? reinterpret_cast<T*>(at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

}  // namespace attn::cuda
