// Vector 2^x, natural logarithm by lane, and tanh for the softcap.
#pragma once

#include <cmath>
#include <type_traits>

#include "attn/softmax.h"
#include "cpu/simd.h"

ATTN_NAMESPACE_BEGIN

// (...(first f + c1) f + c2 ...): a polynomial, highest coefficient first.
template <class... C> ATTN_INLINE f32v horner(f32v f, float first, C... rest) {
  f32v r = splat(first);
  ((r = r * f + rest), ...);
  return r;
}

// 2^x for x <= 127. x of -127 and below (in particular -inf) gives exactly 0, NaN gives NaN, 2^0 is exactly 1.
// x = n + f; 2^f by a polynomial of degree 5, or 4 (minimax in relative error, constant term fixed at 1).
#if ATTN_VBYTES == 64 && defined(__AVX512DQ__)
// n = floor(x), f in [0, 1): one instruction gives f, another multiplies by 2^floor(x). Error 8.2e-8, or 3.0e-6.
template <int kDegree> ATTN_INLINE f32v exp2_fraction(f32v f) {
  if constexpr (kDegree == 4) {
    return horner(f, 1.342668425e-02f, 5.224247427e-02f, 2.412802047e-01f, 6.930448449e-01f, 1.0f);
  } else {
    return horner(f, 1.867130072e-03f, 9.017030316e-03f, 5.579991311e-02f, 2.401644502e-01f, 6.931513118e-01f, 1.0f);
  }
}
template <int kDegree> ATTN_INLINE f32v exp2_by(f32v x) {
  const __m512 v = (__m512)x;
  const f32v r = exp2_fraction<kDegree>((f32v)_mm512_maskz_reduce_ps(0xffff, v, 0x01));
  const __mmask16 nonzero = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-127.0f), _CMP_NLE_UQ);  // true for NaN
  return (f32v)_mm512_maskz_scalef_ps(nonzero, (__m512)r, v);
}
#else
// n = the nearest integer, f in [-0.5, 0.5], 2^n by writing the exponent field: at n = -127 that field is 0, hence 0.
// Error 9.2e-8, or 2.9e-6.
template <int kDegree> ATTN_INLINE f32v exp2_by(f32v x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
  x = x < -127.0f ? splat(-127.0f) : x;
  const f32v t = x + magic;
  const f32v f = x - (t - magic);
  // Unsigned: what lies outside the promised range is wrong, but never undefined.
  const u32v scale = (bit_cast<u32v>(t) << 23) + (127u << 23);
  const f32v r = kDegree == 4 ? horner(f, 9.582853029e-03f, 5.590642459e-02f, 2.402409861e-01f, 6.931241934e-01f, 1.0f)
                              : horner(f, 1.326472731e-03f, 9.671512991e-03f, 5.550733581e-02f, 2.402224243e-01f,
                                       6.931470037e-01f, 1.0f);
  return r * bit_cast<f32v>(scale);
}
#endif
ATTN_INLINE f32v exp2v(f32v x) { return exp2_by<5>(x); }

// float64 serves gradient checks: accuracy matters, speed doesn't.
ATTN_INLINE f64v exp2v(f64v x) {
  f64v r{};
  for (int i = 0; i < Lanes<double>::n; ++i) r[i] = std::exp2(x[i]);
  return r;
}

// log2(x) for x > 0, normal and finite, NaN for NaN; error 1e-7 of the result. With x = 2^n m and s = (m - 1) / (m +
// 1), ln m = 2 (s + s^3 / 3 + s^5 / 5 + ...), and |s| < 0.18 for m between the square roots of 1/2 and 2.
ATTN_INLINE f32v log2v(f32v x) {
  const u32v bits = bit_cast<u32v>(x), shifted = bits - 0x3f3504f3u;  // of sqrt(1/2)
  const f32v n = __builtin_convertvector(bit_cast<i32v>(shifted) >> 23, f32v);
  const f32v m = bit_cast<f32v>((shifted & 0x7fffffu) + 0x3f3504f3u), s = (m - 1) / (m + 1), t = s * s;
  const f32v series = (((t * (1.0f / 9) + 1.0f / 7) * t + 1.0f / 5) * t + 1.0f / 3) * t + 1;
  const f32v y = n + s * series * static_cast<float>(2 * kLog2e);
  return x == x ? y : x;
}
ATTN_INLINE f64v log2v(f64v x) {
  f64v r{};
  for (int i = 0; i < Lanes<double>::n; ++i) r[i] = std::log2(x[i]);
  return r;
}

// tanh(x) = sign(x) (1 - e) / (1 + e), e = exp(-2|x|).
template <class V> ATTN_INLINE V tanhv(V x) {
  using S = std::remove_reference_t<decltype(x[0])>;
  const V magnitude = x < 0 ? -x : x;
  const V e = exp2v(magnitude * static_cast<S>(-2 * kLog2e));
  const V r = (1 - e) / (1 + e);
  return x < 0 ? -r : r;
}

ATTN_NAMESPACE_END
