// Sixteen bytes of a row at a time, as floats.
#pragma once

#include "attn/pool.h"
#include "cuda/seam.h"

namespace attn::cuda {

template <class T> constexpr int kPack = 16 / static_cast<int>(sizeof(T));

template <class T> struct alignas(16) RowPack { T x[kPack<T>]; };

// May all packs of the rows be moved at once? Then they lie on multiples of 16 bytes, and none is cut by a row's end.
template <class T> ATTN_DEVICE bool packs_whole(const void* data, int64_t stride, int64_t other_stride, int64_t size) {
  return (reinterpret_cast<uintptr_t>(data) % 16 == 0) & ((stride | other_stride | size) % kPack<T> == 0);
}

// The pack of `row` that begins at `at`; zeros past `size`.
template <class T>
ATTN_DEVICE void load_pack(const T* row, int64_t at, int64_t size, bool whole, float (&x)[kPack<T>]) {
  if (whole && at < size) {
    const RowPack<T> y = *reinterpret_cast<const RowPack<T>*>(row + at);
    ATTN_UNROLL
    for (int i = 0; i < kPack<T>; ++i) x[i] = seam::to_float(y.x[i]);
    return;
  }
  ATTN_UNROLL
  for (int i = 0; i < kPack<T>; ++i) x[i] = at + i < size ? seam::to_float(row[at + i]) : 0;
}

template <class T>
ATTN_DEVICE void store_pack(T* row, int64_t at, int64_t size, bool whole, const float (&x)[kPack<T>]) {
  if (whole && at < size) {
    RowPack<T> y;
    ATTN_UNROLL
    for (int i = 0; i < kPack<T>; ++i) y.x[i] = seam::from_float<T>(x[i]);
    *reinterpret_cast<RowPack<T>*>(row + at) = y;
    return;
  }
  ATTN_UNROLL
  for (int i = 0; i < kPack<T>; ++i) {
    if (at + i < size) row[at + i] = seam::from_float<T>(x[i]);
  }
}

}  // namespace attn::cuda
