// What an element type makes of a product on tensor cores: how its operands come about and where it is added up.
//
// bf16 and f16 are multiplied as they are. float32 is multiplied as tf32, which has 11 of its 24 bits, in two parts:
//   a b = (A + a') (B + b') = A B + A b' + a' B,   A and B: the upper 11 bits,
// so that what is left out, a' b', is 2^-22 of the product: about float32's own error. A unit of fp32 would be exact
// and, from sm_80 on, take two to five times as long; it would also ask for another form of every operand, where tf32's
// is that of 16-bit elements with half as many of them. Tensor cores cut sums off instead of rounding them, which adds
// up over long sums; so only short ones are left to them.
#pragma once

#include "cuda/seam.h"

namespace attn::cuda {

template <class T> struct Products {
  static constexpr int kDepth = 16;      // terms of a product
  static constexpr bool kSplit = false;  // operands are in two parts

  struct A { uint32_t all[4]; };
  ATTN_DEVICE static A operand(const uint32_t (&x)[4]) { return {{x[0], x[1], x[2], x[3]}}; }
  // Of columns 16 k to 16 k + 15 of accumulators.
  template <int kGroups> ATTN_DEVICE static void pack(uint32_t (&a)[4], const float (&s)[kGroups][4], int k) {
    a[0] = seam::pack<T>(s[2 * k][0], s[2 * k][1]);
    a[1] = seam::pack<T>(s[2 * k][2], s[2 * k][3]);
    a[2] = seam::pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]);
    a[3] = seam::pack<T>(s[2 * k + 1][2], s[2 * k + 1][3]);
  }
  template <int kGroups> ATTN_DEVICE static A operand(const float (&s)[kGroups][4], int k) {
    A a;
    pack(a.all, s, k);
    return a;
  }
  // c += a b
  ATTN_DEVICE static void add(float (&c)[4], const A& a, const uint32_t (&b)[2]) { seam::mma<T>(c, a.all, b); }
  // The same where b holds zeros and ones only.
  ATTN_DEVICE static void add_where(float (&c)[4], const A& a, const uint32_t (&b)[2]) { add(c, a, b); }
};

template <> struct Products<float> {
  static constexpr int kDepth = 8;
  static constexpr bool kSplit = true;
  static constexpr uint32_t kUpper = 0xffffe000;  // of a float, tf32's bits

  ATTN_DEVICE static float upper(float x) { return seam::float_of(seam::bits_of(x) & kUpper); }

  struct A { float upper[4], lower[4]; };

  // Rounded, so that left-out products have either sign; not to infinity.
  ATTN_DEVICE static void split(float x, float& above, float& below) {
    const uint32_t bits = seam::bits_of(x);
    above = upper(seam::float_of(bits + ((bits & 0x7fffffff) < 0x7f7ff000 ? 0x1000 : 0)));
    below = upper(x - above);
  }
  ATTN_DEVICE static A operand(const uint32_t (&x)[4]) {
    A a;
    ATTN_UNROLL
    for (int i = 0; i < 4; ++i) split(seam::float_of(x[i]), a.upper[i], a.lower[i]);
    return a;
  }
  // Of columns 8 k to 8 k + 7 of accumulators, two of which a thread has side by side: term t of the product is column
  // 2 t, term t + 4 column 2 t + 1. SharedRows::operands_b_transposed has its rows in the same order.
  template <int kGroups> ATTN_DEVICE static A operand(const float (&s)[kGroups][4], int k) {
    A a;
    ATTN_UNROLL
    for (int i = 0; i < 4; ++i) split(s[k][i % 2 * 2 + i / 2], a.upper[i], a.lower[i]);
    return a;
  }
  // b is cut off, not rounded: there are more of them, and a' is rounded.
  ATTN_DEVICE static void add(float (&c)[4], const A& a, const uint32_t (&b)[2]) {
    float above[2], below[2];
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float x = seam::float_of(b[i]);
      above[i] = upper(x);
      below[i] = upper(x - above[i]);
    }
    seam::mma_tf32(c, a.lower, above);
    seam::mma_tf32(c, a.upper, below);
    seam::mma_tf32(c, a.upper, above);
  }
  ATTN_DEVICE static void add_where(float (&c)[4], const A& a, const uint32_t (&b)[2]) {
    const float x[2] = {seam::float_of(b[0]), seam::float_of(b[1])};
    seam::mma_tf32(c, a.upper, x);
  }
};

// s += products of 16 rows from `row` with 8 kGroups columns from `column` (rows of their own), over kCount features
// from `feature`. A thread's elements of s are those of an mma: [n][2 i + c] of row lane / 4 + 8 i and column 8 n + 2
// (lane % 4) + c.
template <int kGroups, int kCount, class Rows, class Columns>
ATTN_DEVICE void add_products(Rows& rows, int row, Columns& columns, int column, int feature, float (&s)[kGroups][4]) {
  using Product = Products<typename Rows::Element>;
  ATTN_UNROLL
  for (int i = 0; i < kCount / Product::kDepth; ++i) {
    const int d = feature / Product::kDepth + i;
    uint32_t x[4];
    rows.operand_a(x, row, d);
    const typename Product::A a = Product::operand(x);
    ATTN_UNROLL
    for (int n = 0; n < kGroups; n += 2) {
      uint32_t b[2], c[2];
      columns.operands_b(b, c, column + 8 * n, d);
      Product::add(s[n], a, b);
      Product::add(s[n + 1], a, c);
    }
  }
}

// out += weights, elements as above, times kGroups groups of eight features from `group` of the values from `first`.
template <int kGroups, class Values, int kWeights>
ATTN_DEVICE void add_values(const float (&weights)[kWeights][4], Values& values, int first, int group,
                            float (*out)[4]) {
  using Product = Products<typename Values::Element>;
  ATTN_UNROLL
  for (int k = 0; k < 8 * kWeights / Product::kDepth; ++k) {
    const typename Product::A a = Product::operand(weights, k);
    ATTN_UNROLL
    for (int n = 0; n < kGroups; n += 2) {
      uint32_t b[2], c[2];
      values.operands_b_transposed(b, c, first + Product::kDepth * k, (group + n) / 2);
      Product::add(out[n], a, b);
      Product::add(out[n + 1], a, c);
    }
  }
}

}  // namespace attn::cuda
