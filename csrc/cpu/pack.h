// Copies rows of a tensor into the operand layouts of micro.h, converting the element type on the way.
//   rows      [n][ld]            row-major, zero-padded to ld: the operand that is broadcast (K, V as keys)
//   columns   [n][ld]            row-major for the operand read by vectors; bf16x2 pairs row n with row n + 1
//   panel     [depth][width]     transposed: rows in lanes
#pragma once

#include "cpu/micro.h"
#include "cpu/transpose.h"

ATTN_NAMESPACE_BEGIN

// What a tensor of In is multiplied as.
template <class In> struct OperandOf { using type = float; };
template <> struct OperandOf<double> { using type = double; };
#if ATTN_BF16_DOT
template <> struct OperandOf<bf16> { using type = bf16x2; };
#endif
template <class In> using Operand = typename OperandOf<In>::type;

template <class T> constexpr int kPair = kPairRows<T> ? 2 : 1;  // tensor elements per operand element

template <class T> ATTN_INLINE int64_t depth_of(int64_t n) { return (n + kPair<T> - 1) / kPair<T>; }
template <class T> ATTN_INLINE int64_t round_up_lanes(int64_t n) { return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }

// One row of `n` elements to `width` >= n elements of the accumulation type, zero-padded.
template <class A, class In> ATTN_INLINE void convert_row(const In* src, int64_t n, A* dst, int64_t width) {
  int64_t i = 0;
  for (; i + Lanes<A>::n <= n; i += Lanes<A>::n) store(dst + i, load_as(src + i, A{}));
  for (; i < n; ++i) dst[i] = to_float(src[i]);
  for (; i < width; ++i) dst[i] = A{0};
}

// The way back: factor * src, rounded to In.
template <class A, class In> ATTN_INLINE void store_row(const A* src, A factor, In* dst, int64_t n) {
  int64_t i = 0;
  for (; i + Lanes<A>::n <= n; i += Lanes<A>::n) store_as(dst + i, load(src + i) * factor);
  for (; i < n; ++i) dst[i] = From<In>::of(src[i] * factor);
}

// ---- rows ------------------------------------------------------------------------------------------------------

template <class T, class In> struct Pack {
  static ATTN_INLINE void row(const In* src, int64_t n, T* dst, int64_t ld) { convert_row(src, n, dst, ld); }

  static void columns(const In* src, int64_t stride, int64_t rows, int64_t n, T* dst, int64_t ld) {
    for (int64_t r = 0; r < rows; ++r) convert_row(src + r * stride, n, dst + r * ld, ld);
  }

  // A vector of operand elements.
  static ATTN_INLINE vec<T> vector(const In* src) { return load_as(src, T{}); }

  // Operand elements from `begin` on in lane `lane` of a panel.
  static void lane(const In* src, int64_t begin, int64_t n, T* panel, int64_t width, int64_t lane) {
    for (int64_t d = begin; d < n; ++d) panel[d * width + lane] = to_float(src[d]);
  }
};

template <> struct Pack<bf16x2, bf16> {
  static ATTN_INLINE void row(const bf16* src, int64_t n, bf16x2* dst, int64_t ld) {
    // By vectors: a call of memcpy costs more than a row of 64.
    constexpr int64_t step = 2 * kLanes<bf16x2>;
    int64_t i = 0;
    for (; i + step <= n; i += step) store(dst + i / 2, vector(src + i));
    if (i == 2 * ld) return;
    std::memcpy(static_cast<void*>(dst + i / 2), src + i, (n - i) * sizeof(bf16));
    std::memset(reinterpret_cast<bf16*>(dst) + n, 0, (ld * 2 - n) * sizeof(bf16));
  }

  static ATTN_INLINE u32v vector(const bf16* src) {
    u32v v;
    std::memcpy(&v, src, sizeof v);
    return v;
  }

  static void lane(const bf16* src, int64_t begin, int64_t n, bf16x2* panel, int64_t width, int64_t lane) {
    for (int64_t d = begin; d < n / 2; ++d) std::memcpy(&panel[d * width + lane], src + 2 * d, sizeof(bf16x2));
    if (n % 2) panel[n / 2 * width + lane] = bf16x2{src[n - 1].bits};
  }
};

// Two rows (the second may be null: zeros) interleaved into pairs.
template <class T, class In> ATTN_INLINE void pack_row_pair(const In* lo, const In* hi, int64_t n, T* dst, int64_t ld) {
  Pack<T, In>::row(lo, n, dst, ld);
  (void)hi;
}
template <>
inline void pack_row_pair<bf16x2, bf16>(const bf16* lo, const bf16* hi, int64_t n, bf16x2* dst, int64_t ld) {
  constexpr int L = kLanes<bf16x2>;
  int64_t i = 0;
#if ATTN_VBYTES == 64 && defined(__AVX512BW__)
  const __m512i first =
      _mm512_set_epi32(0x002f000f, 0x002e000e, 0x002d000d, 0x002c000c, 0x002b000b, 0x002a000a, 0x00290009, 0x00280008,
                       0x00270007, 0x00260006, 0x00250005, 0x00240004, 0x00230003, 0x00220002, 0x00210001, 0x00200000);
  const __m512i second = _mm512_or_si512(first, _mm512_set1_epi32(0x00100010));
  for (; i + 2 * L <= n; i += 2 * L) {
    const __m512i a = _mm512_loadu_si512(lo + i), b = hi ? _mm512_loadu_si512(hi + i) : _mm512_setzero_si512();
    store(dst + i, (u32v)_mm512_permutex2var_epi16(a, first, b));
    store(dst + i + L, (u32v)_mm512_permutex2var_epi16(a, second, b));
  }
#endif
  typedef uint16_t u16h __attribute__((vector_size(ATTN_VBYTES / 2)));
  for (; i + L <= n; i += L) {
    u16h a, b{};
    std::memcpy(&a, lo + i, sizeof a);
    if (hi) std::memcpy(&b, hi + i, sizeof b);
    store(dst + i, __builtin_convertvector(a, u32v) | (__builtin_convertvector(b, u32v) << 16));
  }
  for (; i < n; ++i) dst[i].bits = lo[i].bits | static_cast<uint32_t>(hi ? hi[i].bits : 0) << 16;
  for (; i < ld; ++i) dst[i].bits = 0;
}

// A whole panel from rows that `row_pointer(i)` names; lanes past `rows` are zero. Lanes x lanes elements at a time are
// transposed in registers.
template <class T, class In, class RowPointer>
inline void pack_panel(RowPointer&& row_pointer, int64_t rows, int64_t n, T* panel, int64_t width) {
  constexpr int L = kLanes<T>;
  if (rows < width) std::memset(static_cast<void*>(panel), 0, depth_of<T>(n) * width * sizeof(T));
  const int64_t whole = n / (L * kPair<T>)*L;
  int64_t r = 0;
  for (; r + L <= rows; r += L) {
    const In* from[L];
    for (int i = 0; i < L; ++i) from[i] = row_pointer(r + i);
    for (int64_t d = 0; d < whole; d += L) {
      vec<T> x[L];
      ATTN_UNROLL
      for (int i = 0; i < L; ++i) x[i] = Pack<T, In>::vector(from[i] + d * kPair<T>);
      transpose_detail::step<1, L>(x);
      ATTN_UNROLL
      for (int i = 0; i < L; ++i) store(panel + (d + i) * width + r, x[i]);
    }
    for (int i = 0; i < L; ++i) Pack<T, In>::lane(from[i], whole, n, panel, width, r + i);
  }
  for (; r < rows; ++r) Pack<T, In>::lane(row_pointer(r), 0, n, panel, width, r);
}

ATTN_NAMESPACE_END
