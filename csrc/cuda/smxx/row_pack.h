// Sixteen bytes of a row at a time, as floats, where rows may have any start and end.
#pragma once

#include "cuda/vectors.h"

namespace attn::cuda {

// May all packs of the rows be moved at once? Then they lie on multiples of 16 bytes, and none is cut by a row's end.
template <class T> ATTN_DEVICE bool packs_whole(const void* data, int64_t stride, int64_t other_stride, int64_t size) {
  return (reinterpret_cast<uintptr_t>(data) % 16 == 0) & ((stride | other_stride | size) % kWide<T> == 0);
}

// The pack of `row` that begins at `at`; zeros past `size`.
template <class T>
ATTN_DEVICE void load_pack(const T* row, int64_t at, int64_t size, bool whole, float (&x)[kWide<T>]) {
  if (whole && at < size) return load_channels(row + at, x);
  ATTN_UNROLL
  for (int i = 0; i < kWide<T>; ++i) x[i] = at + i < size ? seam::to_float(row[at + i]) : 0;
}

template <class T>
ATTN_DEVICE void store_pack(T* row, int64_t at, int64_t size, bool whole, const float (&x)[kWide<T>]) {
  if (whole && at < size) return store_channels(row + at, x);
  ATTN_UNROLL
  for (int i = 0; i < kWide<T>; ++i) {
    if (at + i < size) row[at + i] = seam::from_float<T>(x[i]);
  }
}

}  // namespace attn::cuda
