// Rows of 16-bit elements or float32 in shared memory, as mma operands: kDim elements each, zeros past the tensor's
// own. The 16-byte chunks of a row are permuted by its number, so that the eight rows of an ldmatrix lie in different
// banks. Operands are two chunks long, 16 or 8 elements (Products::kDepth).
#pragma once

#include "cuda/seam.h"

namespace attn::cuda {

struct alignas(16) Chunk { uint32_t word[4]; };

template <class T> constexpr uint32_t kNotFinite = 0;  // the exponent of infinity and NaN
template <> inline constexpr uint32_t kNotFinite<seam::Bf16> = 0x7f80;
template <> inline constexpr uint32_t kNotFinite<seam::F16> = 0x7c00;
template <> inline constexpr uint32_t kNotFinite<float> = 0x7f800000;
template <class T> constexpr uint32_t kOne = 0;
template <> inline constexpr uint32_t kOne<seam::Bf16> = 0x3f80;
template <> inline constexpr uint32_t kOne<seam::F16> = 0x3c00;
template <> inline constexpr uint32_t kOne<float> = 0x3f800000;

// Replaces NaN and infinity in a word by 0; plus and minus are 1 where infinity or -infinity was, both where NaN was.
template <class T> ATTN_DEVICE void split_not_finite(uint32_t& word, uint32_t& plus, uint32_t& minus) {
  constexpr int kBits = 8 * sizeof(T);
  constexpr uint32_t kAll = 0xffffffffu >> (32 - kBits);
  plus = minus = 0;
  ATTN_UNROLL
  for (int shift = 0; shift < 32; shift += kBits) {
    const uint32_t bits = word >> shift & kAll;
    if ((bits & kNotFinite<T>) != kNotFinite<T>) continue;
    const bool nan = (bits & kAll / 2) != kNotFinite<T>, negative = bits >> (kBits - 1);
    word &= ~(kAll << shift);
    if (nan || !negative) plus |= kOne<T> << shift;
    if (nan || negative) minus |= kOne<T> << shift;
  }
}

// Elements i and, of 16-bit ones, i + 1 of a row that has n.
template <class T> ATTN_DEVICE uint32_t word_of(const T* x, int i, int n) {
  const uint32_t low = i < n ? x[i].bits : 0, high = i + 1 < n ? x[i + 1].bits : 0;
  return low | high << 16;
}
template <> ATTN_DEVICE uint32_t word_of<float>(const float* x, int i, int n) {
  return i < n ? seam::bits_of(x[i]) : 0;
}

template <class T, int kDim, int kRows> struct SharedRows {
  static_assert(kDim % 64 == 0 && (sizeof(T) == 2 || sizeof(T) == 4));
  using Element = T;
  static constexpr int kPerChunk = 16 / sizeof(T), kPerWord = 4 / sizeof(T);  // elements
  static constexpr int kChunks = kDim / kPerChunk;                            // of a row
  Chunk chunk[kRows * kChunks];

  ATTN_DEVICE Chunk* at(int row, int c) { return chunk + row * kChunks + (c ^ (row % 8)); }

  // Calls f(row, chunk) for the calling thread's share.
  template <int kThreads, class F> ATTN_DEVICE static void for_mine(F&& f) {
    static_assert(kRows * kChunks % kThreads == 0 && kThreads % kChunks == 0);
    ATTN_ROLLED
    for (int i = seam::thread(); i < kRows * kChunks; i += kThreads) f(i / kChunks, i % kChunks);
  }

  // Starts copying `dim` elements a row; row r begins at from[offset(r)], and is zeros where that is negative. cp.async
  // needs 16-byte addresses; other tensors are read element by element.
  template <int kThreads, class Offset>
  ATTN_DEVICE void load(const T* from, int dim, bool aligned, Offset&& offset) {
    for_mine<kThreads>([&](int row, int c) {
      const int64_t begin = offset(row);
      const int left = begin < 0 ? 0 : dim - kPerChunk * c, n = left < 0 ? 0 : left < kPerChunk ? left : kPerChunk;
      const T* x = n ? from + begin + kPerChunk * c : from;
      if (aligned) return seam::copy16_async(at(row, c), x, static_cast<int>(sizeof(T)) * n);
      Chunk y;
      ATTN_UNROLL
      for (int i = 0; i < 4; ++i) y.word[i] = word_of(x, kPerWord * i, n);
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
    constexpr uint32_t low = kNotFinite<T>, high = sizeof(T) == 2 ? low << 16 : low;
    bool finite = true;
    ATTN_UNROLL
    for (int i = 0; i < 4; ++i) finite &= (x.word[i] & low) != low && (x.word[i] & high) != high;
    return finite;
  }

  // A[16 rows from `row`][the k-th two chunks].
  ATTN_DEVICE void operand_a(uint32_t (&a)[4], int row, int k) {
    const int i = seam::lane() / 8;
    seam::ldmatrix4(a, at(row + seam::lane() % 8 + i % 2 * 8, 2 * k + i / 2));
  }

  // A[16 elements from 16 m][16 rows from 16 k]: rows as columns.
  ATTN_DEVICE void operand_a_transposed(uint32_t (&a)[4], int m, int k) {
    const int i = seam::lane() / 8;
    seam::ldmatrix4_transposed(a, at(16 * k + seam::lane() % 8 + i / 2 * 8, 2 * m + i % 2));
  }

  // B[the k-th two chunks][n] = element of row n, for two groups of eight rows from `row`.
  ATTN_DEVICE void operands_b(uint32_t (&first)[2], uint32_t (&second)[2], int row, int k) {
    const int i = seam::lane() / 8;
    uint32_t r[4];
    seam::ldmatrix4(r, at(row + seam::lane() % 8 + i / 2 * 8, 2 * k + i % 2));
    first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
  }

  // B[16 or 8 rows from `row`][n] = element n, for two groups of eight elements from 16 n. There is no transposed
  // ldmatrix of words: each is read by itself, again from 32 banks, in the order of Products<float>::operand.
  ATTN_DEVICE void operands_b_transposed(uint32_t (&first)[2], uint32_t (&second)[2], int row, int n) {
    if constexpr (sizeof(T) == 4) {
      const int from = row + seam::lane() % 4 * 2, element = 16 * n + seam::lane() / 4;
      ATTN_UNROLL
      for (int i = 0; i < 2; ++i) {
        first[i] = seam::load_word(at(from + i, element / 4)->word + element % 4);
        second[i] = seam::load_word(at(from + i, element / 4 + 2)->word + element % 4);
      }
    } else {
      const int i = seam::lane() / 8;
      uint32_t r[4];
      seam::ldmatrix4_transposed(r, at(row + seam::lane() % 8 + i % 2 * 8, 2 * n + i / 2));
      first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
    }
  }
};

// May rows of the tensor be copied 16 bytes at a time?
template <class T> ATTN_DEVICE bool rows_aligned(const View4& x) {
  constexpr int64_t kPerChunk = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.batch | x.head | x.token) % kPerChunk == 0;
}

}  // namespace attn::cuda
