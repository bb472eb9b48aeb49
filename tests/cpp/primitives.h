// What the tests reach of the kernels' building blocks (simd.h, exp.h, micro.h, dot_max.h): one table per instruction
// set, filled by primitives.cpp compiled for it, like the kernels themselves. Matrices are doubles here; the table's
// functions convert them to the operand type in buffers of exactly the size the building block may touch, so that a
// sanitizer sees every step beyond.
#pragma once

#include <cstdint>

namespace attn {

// The products for one operand type. `vectors` is 1 or 2 and says how wide the panel is.
struct ProductTable {
  int lanes, pair;  // of an operand vector; elements of the contracted dimension in an operand element
  // s [rows][vectors * lanes] = c * a [rows][depth] . b [depth][vectors * lanes]; top [vectors * lanes]. A c of 1 is
  // not multiplied by.
  void (*dot_panel)(int vectors, int64_t rows, int64_t depth, const double* a, const double* b, double c, double* s,
                    double* top);
  // top [rows]: the maximum over all lanes; rows of a are scattered. NaN is left out.
  void (*dot_max)(int vectors, int64_t rows, int64_t depth, const double* a, const double* b, double* top);
  // o [vectors * lanes][columns] = o * alpha + p [depth][vectors * lanes]^T . b [depth][columns].
  void (*acc_panel)(int vectors, int64_t rows, int64_t depth, int64_t columns, const double* p, const double* b,
                    const double* alpha, double* o);
  // o [rows][columns] += a [rows][depth] . b [depth][columns].
  void (*add_rows)(int64_t rows, int64_t depth, int64_t columns, const double* a, const double* b, double* o);
};

struct PrimitiveTable {
  bool bf16_dot;
  ProductTable f32, f64, bf16_pairs;
  // Any n.
  void (*exp2_f32)(const float* x, float* y, int64_t n);
  void (*exp2_short)(const float* x, float* y, int64_t n);  // of degree 4
  void (*exp2_f64)(const double* x, double* y, int64_t n);
  void (*tanh_f32)(const float* x, float* y, int64_t n);
  // The bits of n numbers, by vectors and one by one; n is a multiple of 64.
  void (*bf16_to_float)(const uint16_t* x, float* by_vector, float* by_scalar, int64_t n);
  void (*f16_to_float)(const uint16_t* x, float* by_vector, float* by_scalar, int64_t n);
  void (*float_to_bf16)(const float* x, uint16_t* by_vector, uint16_t* by_scalar, int64_t n);
  void (*float_to_f16)(const float* x, uint16_t* by_vector, uint16_t* by_scalar, int64_t n);
  // pairs[i] = (lo[i], hi[i]) rounded to bf16, low half first.
  void (*make_pairs)(const float* lo, const float* hi, uint32_t* pairs, int64_t n);
  int32_t (*mth_largest)(const int32_t* score, int32_t n, int32_t m);
};

// The row of the instruction set in use.
const PrimitiveTable& primitives();

}  // namespace attn
