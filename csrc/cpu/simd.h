// One vector vocabulary for every CPU instruction set, on GCC/Clang vector extensions: arithmetic, comparison and
// selection are the language's own operators; only memory access, type conversion and the bf16 dot product are named
// here. A translation unit sets ATTN_VBYTES (16, 32, 64) and, where the CPU multiplies bf16 pairs, ATTN_BF16_DOT.
// A 64-byte build also compiles without AVX-512 (the compiler splits the vectors), which is how it is tested on
// machines that lack it.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "attn/types.h"

#ifndef ATTN_VBYTES
#define ATTN_VBYTES 16
#endif
#ifndef ATTN_BF16_DOT
#define ATTN_BF16_DOT 0
#endif

#define ATTN_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define ATTN_UNROLL _Pragma("unroll")
#else
#define ATTN_UNROLL _Pragma("GCC unroll 32")
#endif

namespace attn {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };
// Two neighbouring bf16 along the contracted dimension: what the dot instruction multiplies in one lane.
struct bf16x2 { uint32_t bits; };

}  // namespace attn

ATTN_NAMESPACE_BEGIN

template <class T> struct Lanes { static constexpr int n = ATTN_VBYTES / sizeof(T); };
template <> struct Lanes<bf16x2> { static constexpr int n = ATTN_VBYTES / 4; };

typedef float f32v __attribute__((vector_size(ATTN_VBYTES)));
typedef double f64v __attribute__((vector_size(ATTN_VBYTES)));
typedef int32_t i32v __attribute__((vector_size(ATTN_VBYTES)));
typedef uint32_t u32v __attribute__((vector_size(ATTN_VBYTES)));
typedef int64_t i64v __attribute__((vector_size(ATTN_VBYTES)));

template <class T> struct VecOf;
template <> struct VecOf<float> {
  using type = f32v;
  using mask = i32v;
};
template <> struct VecOf<double> {
  using type = f64v;
  using mask = i64v;
};
template <> struct VecOf<int32_t> {
  using type = i32v;
  using mask = i32v;
};
template <> struct VecOf<int64_t> {
  using type = i64v;
  using mask = i64v;
};
template <> struct VecOf<bf16x2> {
  using type = u32v;
  using mask = i32v;
};
template <class T> using vec = typename VecOf<T>::type;
template <class T> using vmask = typename VecOf<T>::mask;

template <class T> ATTN_INLINE vec<T> load(const T* p) {
  vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T, class V> ATTN_INLINE void store(T* p, V v) { std::memcpy(p, &v, sizeof v); }
template <class T> ATTN_INLINE vec<T> splat(T x) { return x - vec<T>{}; }
template <> ATTN_INLINE u32v splat<bf16x2>(bf16x2 x) { return x.bits + u32v{}; }

// NaN in `a` is kept by neither: callers let a NaN reach the result through the exponential instead.
template <class V> ATTN_INLINE V vmax(V a, V b) { return a > b ? a : b; }
template <class V> ATTN_INLINE V vmin(V a, V b) { return a < b ? a : b; }

// Does a comparison hold in any lane?
template <class M> ATTN_INLINE bool any_lane(M m) {
#if ATTN_VBYTES == 64 && defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)m) != 0;
#else
  uint64_t words[sizeof m / 8], any = 0;
  std::memcpy(words, &m, sizeof m);
  for (const uint64_t word : words) any |= word;
  return any != 0;
#endif
}

template <class To, class From> ATTN_INLINE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// ---- scalar conversions -------------------------------------------------------------------------------------

ATTN_INLINE float to_float(float x) { return x; }
ATTN_INLINE double to_float(double x) { return x; }
ATTN_INLINE float to_float(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, mag = x.bits & 0x7fffu;
  if (mag >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (mag & 0x3ffu) << 13);
  if (mag >= 0x0400u) return bit_cast<float>(sign | ((mag << 13) + (112u << 23)));
  const float tiny = static_cast<float>(mag) * 5.9604644775390625e-8f;  // subnormal: multiples of 2^-24
  return bit_cast<float>(sign | bit_cast<uint32_t>(tiny));
}

template <class T> struct From;  // round a float to nearest even
template <> struct From<float> {
  static ATTN_INLINE float of(float x) { return x; }
};
template <> struct From<double> {
  static ATTN_INLINE double of(double x) { return x; }
};
template <> struct From<bf16> {
  static ATTN_INLINE bf16 of(float x) {
    const uint32_t u = bit_cast<uint32_t>(x);
    if (x != x) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
    return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
  }
};
template <> struct From<f16> {
  static inline f16 of(float x) {
    const uint32_t u = bit_cast<uint32_t>(x), sign = (u >> 16) & 0x8000u, mag = u & 0x7fffffffu;
    if (mag > 0x7f800000u) return f16{static_cast<uint16_t>(sign | 0x7e00u)};
    if (mag >= 0x477ff000u) return f16{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
    if (mag < 0x38800000u) {  // subnormal: adding 0.5 puts the last kept bit at weight 2^-24
      const float r = bit_cast<float>(mag) + 0.5f;
      return f16{static_cast<uint16_t>(sign | (bit_cast<uint32_t>(r) - 0x3f000000u))};
    }
    const uint32_t r = mag + 0xfffu + ((mag >> 13) & 1u) - (112u << 23);
    return f16{static_cast<uint16_t>(sign | (r >> 13))};
  }
};

// ---- vector conversions: one vector of the accumulation type from / to memory of the element type -------------

ATTN_INLINE f32v load_as(const float* p, float) { return load(p); }
ATTN_INLINE f64v load_as(const double* p, double) { return load(p); }
ATTN_INLINE void store_as(float* p, f32v v) { store(p, v); }
ATTN_INLINE void store_as(double* p, f64v v) { store(p, v); }

ATTN_INLINE f32v load_as(const bf16* p, float) {
#if ATTN_VBYTES == 64 && defined(__AVX512F__)
  return (f32v)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif ATTN_VBYTES == 32 && defined(__AVX2__)
  return (f32v)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  typedef uint16_t u16h __attribute__((vector_size(ATTN_VBYTES / 2)));
  u16h h;
  std::memcpy(&h, p, sizeof h);
  return bit_cast<f32v>(__builtin_convertvector(h, u32v) << 16);
#endif
}

// Bits of a float vector rounded to bf16 (nearest even), in the upper half of each lane.
ATTN_INLINE u32v round_bf16(f32v x) {
  const u32v u = bit_cast<u32v>(x);
  const u32v r = u + 0x7fffu + ((u >> 16) & 1u);
  return ((x != x) ? (u | 0x400000u) : r) & 0xffff0000u;
}

ATTN_INLINE void store_as(bf16* p, f32v v) {
#if ATTN_VBYTES == 64 && defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &h, sizeof h);
#elif ATTN_VBYTES == 32 && defined(__AVX2__)
  // Half the work of what the compiler makes of the generic form on a CPU with 128-bit units.
  const u32v u = bit_cast<u32v>(v);
  const u32v r = ((v != v) ? (u | 0x400000u) : u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const __m128i lo = _mm256_castsi256_si128((__m256i)r), hi = _mm256_extracti128_si256((__m256i)r, 1);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(lo, hi));
#else
  typedef uint16_t u16h __attribute__((vector_size(ATTN_VBYTES / 2)));
  const u16h h = __builtin_convertvector(round_bf16(v) >> 16, u16h);
  std::memcpy(p, &h, sizeof h);
#endif
}

ATTN_INLINE f32v load_as(const f16* p, float) {
#if ATTN_VBYTES == 64 && defined(__AVX512F__)
  return (f32v)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif ATTN_VBYTES == 32 && defined(__F16C__)
  return (f32v)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif ATTN_VBYTES == 16 && defined(__aarch64__)
  float16x4_t h;
  std::memcpy(&h, p, sizeof h);
  return (f32v)vcvt_f32_f16(h);
#else
  f32v v;
  for (int i = 0; i < Lanes<float>::n; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

ATTN_INLINE void store_as(f16* p, f32v v) {
#if ATTN_VBYTES == 64 && defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif ATTN_VBYTES == 32 && defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif ATTN_VBYTES == 16 && defined(__aarch64__)
  const float16x4_t h = vcvt_f16_f32((float32x4_t)v);
  std::memcpy(p, &h, sizeof h);
#else
  for (int i = 0; i < Lanes<float>::n; ++i) p[i] = From<f16>::of(v[i]);
#endif
}

// ---- bf16 pairs ------------------------------------------------------------------------------------------------

// acc + a.lo * b.lo + a.hi * b.hi in each lane.
ATTN_INLINE f32v dot_pairs(f32v acc, u32v a, u32v b) {
#if ATTN_VBYTES == 64 && defined(__AVX512BF16__)
  return (f32v)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  acc += bit_cast<f32v>(a & 0xffff0000u) * bit_cast<f32v>(b & 0xffff0000u);
  return acc + bit_cast<f32v>(a << 16) * bit_cast<f32v>(b << 16);
#endif
}

// Lanes (lo[i], hi[i]) rounded to bf16.
ATTN_INLINE u32v make_pairs(f32v lo, f32v hi) {
#if ATTN_VBYTES == 64 && defined(__AVX512BF16__)
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)hi, (__m512)lo);  // lo in words 0-15, hi in 16-31
  const __m512i order =
      _mm512_set_epi32(0x001f000f, 0x001e000e, 0x001d000d, 0x001c000c, 0x001b000b, 0x001a000a, 0x00190009, 0x00180008,
                       0x00170007, 0x00160006, 0x00150005, 0x00140004, 0x00130003, 0x00120002, 0x00110001, 0x00100000);
  return (u32v)_mm512_permutexvar_epi16(order, both);
#else
  return (round_bf16(lo) >> 16) | round_bf16(hi);
#endif
}

// Starts fetching n elements into the cache of a level (3: L1, 2: L2).
template <int kLevel = 3, class T> ATTN_INLINE void prefetch_row(const T* row, int64_t n) {
  const char* at = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < n * static_cast<int64_t>(sizeof(T)); byte += 64)
    __builtin_prefetch(at + byte, 0, kLevel);
}

// Sums of neighbours: (a0 + a1, a2 + a3, ..., b0 + b1, ...).
template <class V, int... I>
ATTN_INLINE V add_neighbours(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// L / N neighbouring lanes for each of N vectors, which add up to the sum over its lanes; for N = L the sums
// themselves. Recursion, since GCC doesn't unroll loops inside loops and would pass the vectors through memory.
template <class A, int N> ATTN_INLINE vec<A> neighbour_sums(const vec<A>* x) {
  if constexpr (N == 1) return x[0];
  else
    return add_neighbours(neighbour_sums<A, N / 2>(x), neighbour_sums<A, N / 2>(x + N / 2),
                          std::make_integer_sequence<int, Lanes<A>::n>{});
}

ATTN_NAMESPACE_END
