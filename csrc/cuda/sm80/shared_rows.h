// Rows of 16-bit elements in shared memory, as mma operands: kDim elements each, zeros past the tensor's own. The
// 16-byte chunks of a row are permuted by its number, so that the eight rows of an ldmatrix lie in different banks.
#pragma once

#include "cuda/seam.h"

namespace attn::cuda {

struct alignas(16) Chunk { uint32_t pair[4]; };

template <class T> constexpr uint32_t kNotFinite = 0;  // the exponent of infinity and NaN
template <> inline constexpr uint32_t kNotFinite<seam::Bf16> = 0x7f80;
template <> inline constexpr uint32_t kNotFinite<seam::F16> = 0x7c00;
template <class T> constexpr uint32_t kOne = 0;
template <> inline constexpr uint32_t kOne<seam::Bf16> = 0x3f80;
template <> inline constexpr uint32_t kOne<seam::F16> = 0x3c00;

// Replaces NaN and infinity in a pair by 0; plus and minus are 1 where infinity or -infinity was, both where NaN was.
template <class T> ATTN_DEVICE void split_not_finite(uint32_t& pair, uint32_t& plus, uint32_t& minus) {
  plus = minus = 0;
  ATTN_UNROLL
  for (int shift = 0; shift < 32; shift += 16) {
    const uint32_t bits = pair >> shift & 0xffff;
    if ((bits & kNotFinite<T>) != kNotFinite<T>) continue;
    const bool nan = (bits & 0x7fff) != kNotFinite<T>, negative = bits >> 15;
    pair &= ~(0xffffu << shift);
    if (nan || !negative) plus |= kOne<T> << shift;
    if (nan || negative) minus |= kOne<T> << shift;
  }
}

template <class T, int kDim, int kRows> struct SharedRows {
  static_assert(kDim % 64 == 0 && sizeof(T) == 2);
  static constexpr int kChunks = kDim / 8;  // of a row
  Chunk chunk[kRows * kChunks];

  ATTN_DEVICE Chunk* at(int row, int c) { return chunk + row * kChunks + (c ^ (row % 8)); }

  // Calls f(row, chunk) for the calling thread's share.
  template <int kThreads, class F> ATTN_DEVICE static void for_mine(F&& f) {
    static_assert(kRows * kChunks % kThreads == 0 && kThreads % kChunks == 0 && kChunks <= 32);
    ATTN_ROLLED
    for (int i = seam::thread(); i < kRows * kChunks; i += kThreads) f(i / kChunks, i % kChunks);
  }

  // Starts copying `dim` elements a row; row r begins at from[offset(r)], and is zeros where that is negative. cp.async
  // needs 16-byte addresses; other tensors are read element by element.
  template <int kThreads, class Offset>
  ATTN_DEVICE void load(const T* from, int dim, bool aligned, Offset&& offset) {
    for_mine<kThreads>([&](int row, int c) {
      const int64_t begin = offset(row);
      const int left = begin < 0 ? 0 : dim - 8 * c, n = left < 0 ? 0 : left < 8 ? left : 8;
      const T* x = n ? from + begin + 8 * c : from;
      if (aligned) return seam::copy16_async(at(row, c), x, 2 * n);
      Chunk y;
      ATTN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t low = 2 * i < n ? x[2 * i].bits : 0, high = 2 * i + 1 < n ? x[2 * i + 1].bits : 0;
        y.pair[i] = low | high << 16;
      }
      *at(row, c) = y;
    });
  }

  // Is all that the calling thread loaded finite?
  template <int kThreads> ATTN_DEVICE bool mine_finite() {
    bool finite = true;
    for_mine<kThreads>([&](int row, int c) { finite &= all_finite(*at(row, c)); });
    return finite;
  }

  // Is the calling thread's share of kCount rows from `row`, which its warp divides up?
  template <int kCount> ATTN_DEVICE bool warp_finite(int row) {
    bool finite = true;
    ATTN_ROLLED
    for (int i = seam::lane(); i < kCount * kChunks; i += 32) finite &= all_finite(*at(row + i / kChunks, i % kChunks));
    return finite;
  }

  ATTN_DEVICE static bool all_finite(const Chunk& x) {
    constexpr uint32_t low = kNotFinite<T>, high = low << 16;
    bool finite = true;
    ATTN_UNROLL
    for (int i = 0; i < 4; ++i) finite &= (x.pair[i] & low) != low && (x.pair[i] & high) != high;
    return finite;
  }

  // A[16 rows from `row`][16 elements from 16 k].
  ATTN_DEVICE void operand_a(uint32_t (&a)[4], int row, int k) {
    const int i = seam::lane() / 8;
    seam::ldmatrix4(a, at(row + seam::lane() % 8 + i % 2 * 8, 2 * k + i / 2));
  }

  // B[16 elements from 16 k][n] = element of row n, for two groups of eight rows from `row`.
  ATTN_DEVICE void operands_b(uint32_t (&first)[2], uint32_t (&second)[2], int row, int k) {
    const int i = seam::lane() / 8;
    uint32_t r[4];
    seam::ldmatrix4(r, at(row + seam::lane() % 8 + i / 2 * 8, 2 * k + i % 2));
    first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
  }

  // B[16 rows from `row`][n] = element n, for two groups of eight elements from 16 n.
  ATTN_DEVICE void operands_b_transposed(uint32_t (&first)[2], uint32_t (&second)[2], int row, int n) {
    const int i = seam::lane() / 8;
    uint32_t r[4];
    seam::ldmatrix4_transposed(r, at(row + seam::lane() % 8 + i % 2 * 8, 2 * n + i / 2));
    first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
  }
};

// May rows of the tensor be copied 16 bytes at a time?
ATTN_DEVICE bool rows_aligned(const View4& x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.batch | x.head | x.token) % 8 == 0;
}

}  // namespace attn::cuda
