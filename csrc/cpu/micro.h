// The register-blocked products every attention pass is made of. A "panel" is a strip of kPanel rows of a tile, stored
// so that the rows lie in SIMD lanes.
//
//   dot_panel   S[n][lane] = c * sum_d A[n][d] * B[d][lane]     A row-major in memory, B a panel (Q or K transposed)
//   acc_panel   O[lane][x] = O[lane][x] * alpha[lane] + sum_n P[n][lane] * B[n][x]     P a panel, B row-major
//   add_rows    O[n][x] += sum_k A[n][k] * B[k][x]                                     both row-major (backward: dQ)
//   multiply_rows  the same without +
//
// So scores come out with query rows in lanes: softmax needs no horizontal step, and the probabilities already have
// the layout the second product broadcasts from. K (in dot) and V (in acc) are read as they lie in memory.
//
// Element type T of the operands is float, double, or bf16x2: pairs of bf16 along the contracted dimension, multiplied
// by the CPU's bf16 dot. Sums and S, O are float (double for double).
#pragma once

#include "cpu/simd.h"

ATTN_NAMESPACE_BEGIN

template <class T> struct AccOf { using type = T; };
template <> struct AccOf<bf16x2> { using type = float; };
template <class T> using Acc = typename AccOf<T>::type;
template <class T> constexpr bool kPairRows = false;  // operand elements hold two rows of the contracted dimension
template <> constexpr bool kPairRows<bf16x2> = true;

// Register budget. A dot block keeps kDotRows x NV accumulators, NV panel vectors and a broadcast; an acc block keeps
// kAccRows x kAccVecs accumulators, kAccVecs operand vectors and a broadcast. 16 registers: 12 + 2 + 1 and 12 + 3 + 1.
// 32 registers: 24 + 2 + 1 and 24 + 3 + 1; at least 8 independent sums hide the multiply-add latency.
#if ATTN_VBYTES == 64
constexpr int kDotRows = 12, kAccRows = 8, kAccVecs = 3;
#else
constexpr int kDotRows = 6, kAccRows = 4, kAccVecs = 3;
#endif
constexpr int kPanelVecs = 2;  // vectors side by side in a panel; a tile's last panel may use one

template <class T> constexpr int kLanes = Lanes<Acc<T>>::n;
template <class T> constexpr int kPanel = kPanelVecs * kLanes<T>;
// Rows of an acc block: it must divide a panel of one vector (two lanes in the narrowest case).
template <class T> constexpr int kAccBlock = kAccRows < kLanes<T> ? kAccRows : kLanes<T>;

template <class T> ATTN_INLINE vec<Acc<T>> multiply_add(vec<T> a, vec<T> b, vec<Acc<T>> c) { return a * b + c; }
template <> ATTN_INLINE f32v multiply_add<bf16x2>(u32v a, u32v b, f32v c) { return dot_pairs(c, a, b); }

// acc[m][v] = sum_d a[m][d] * b[d][v], everything in registers.
template <class T, int MR, int NV>
ATTN_INLINE void product_block(const T* __restrict a, int64_t lda, int64_t depth, const T* __restrict b, int64_t ldb,
                               vec<Acc<T>> (&acc)[MR][NV]) {
  constexpr int L = kLanes<T>;
  ATTN_UNROLL
  for (int m = 0; m < MR; ++m) {
    ATTN_UNROLL
    for (int v = 0; v < NV; ++v) acc[m][v] = vec<Acc<T>>{};
  }
  for (int64_t d = 0; d < depth; ++d) {
    vec<T> bv[NV];
    ATTN_UNROLL
    for (int v = 0; v < NV; ++v) bv[v] = load(b + d * ldb + v * L);
    ATTN_UNROLL
    for (int m = 0; m < MR; ++m) {
      const vec<T> av = splat(a[m * lda + d]);
      ATTN_UNROLL
      for (int v = 0; v < NV; ++v) acc[m][v] = multiply_add<T>(av, bv[v], acc[m][v]);
    }
  }
}

// As the c of dot_panel: 1, without a multiplication.
struct Unscaled {};
template <class V> ATTN_INLINE V operator*(V x, Unscaled) { return x; }

template <class T, int MR, int NV, class C>
ATTN_INLINE void dot_block(const T* a, int64_t lda, int64_t depth, const T* b, C c, Acc<T>* __restrict s,
                           vec<Acc<T>>* top) {
  constexpr int L = kLanes<T>;
  vec<Acc<T>> acc[MR][NV];
  product_block<T, MR, NV>(a, lda, depth, b, NV * L, acc);
  ATTN_UNROLL
  for (int v = 0; v < NV; ++v) {
    vec<Acc<T>> t = top[v];
    ATTN_UNROLL
    for (int m = 0; m < MR; ++m) {
      const vec<Acc<T>> x = acc[m][v] * c;
      store(s + (m * NV + v) * L, x);
      t = vmax(x, t);
    }
    top[v] = t;
  }
}

// Calls f(integral_constant<rows at once>, first row) for blocks of rows, the largest that fit first; but the last 16
// as two of 8, since 4 rows have too few sums under way to keep the multiply-adds busy.
template <class F> ATTN_INLINE void for_row_blocks(int64_t rows, F&& f) {
  int64_t n = 0;
  for (; n + kDotRows <= rows && (kDotRows < 12 || rows - n != 16); n += kDotRows)
    f(std::integral_constant<int, kDotRows>{}, n);
  if constexpr (kDotRows > 8) {
    for (; n + 8 <= rows; n += 8) f(std::integral_constant<int, 8>{}, n);
  }
  for (; n + 4 <= rows; n += 4) f(std::integral_constant<int, 4>{}, n);
  if (n + 2 <= rows) {
    f(std::integral_constant<int, 2>{}, n);
    n += 2;
  }
  if (n < rows) f(std::integral_constant<int, 1>{}, n);
}

struct NothingBetween {
  ATTN_INLINE void operator()() const {}
};

// S [rows][NV * lanes] and, in `top`, the maximum over the rows. lda and depth count T. c is an Acc<T> or Unscaled.
// `between` is called after every block of at most kDotRows rows.
template <class T, int NV, class C, class F = NothingBetween>
inline void dot_panel(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* b, C c, Acc<T>* s,
                      vec<Acc<T>>* top, F&& between = {}) {
  for_row_blocks(rows, [&](auto at_once, int64_t n) __attribute__((always_inline)) {
    dot_block<T, at_once, NV>(a + n * lda, lda, depth, b, c, s + n * NV * kLanes<T>, top);
    between();
  });
}

template <class T, int MR, int NV>
ATTN_INLINE void store_product(const T* a, int64_t lda, int64_t depth, const T* b, Acc<T>* __restrict s) {
  constexpr int L = kLanes<T>;
  vec<Acc<T>> acc[MR][NV];
  product_block<T, MR, NV>(a, lda, depth, b, NV * L, acc);
  ATTN_UNROLL
  for (int m = 0; m < MR; ++m) {
    ATTN_UNROLL
    for (int v = 0; v < NV; ++v) store(s + (m * NV + v) * L, acc[m][v]);
  }
}

// dot_panel without factor and maximum (backward).
template <class T, int NV>
inline void product_panel(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* b, Acc<T>* s) {
  for_row_blocks(rows, [&](auto at_once, int64_t n) __attribute__((always_inline)) {
    store_product<T, at_once, NV>(a + n * lda, lda, depth, b, s + n * NV * kLanes<T>);
  });
}

// acc[r][v] = sum_n p[n][r] * b[n][v], everything in registers.
template <class T, int V>
ATTN_INLINE void acc_product(const T* __restrict p, int64_t width, int64_t depth, const T* __restrict b, int64_t ldb,
                             vec<Acc<T>> (&acc)[kAccBlock<T>][V]) {
  constexpr int L = kLanes<T>, R = kAccBlock<T>;
  ATTN_UNROLL
  for (int r = 0; r < R; ++r) {
    ATTN_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = vec<Acc<T>>{};
  }
  for (int64_t n = 0; n < depth; ++n) {
    vec<T> bv[V];
    ATTN_UNROLL
    for (int v = 0; v < V; ++v) bv[v] = load(b + n * ldb + v * L);
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      const vec<T> pv = splat(p[n * width + r]);
      ATTN_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = multiply_add<T>(pv, bv[v], acc[r][v]);
    }
  }
}

template <class T, int V, class F>
ATTN_INLINE void acc_strip(const T* p, int64_t width, int64_t rows, int64_t depth, const T* b, int64_t ldb,
                           int64_t column, F&& f) {
  for (int64_t r = 0; r < rows; r += kAccBlock<T>) {
    vec<Acc<T>> acc[kAccBlock<T>][V];
    acc_product<T, V>(p + r, width, depth, b + column, ldb, acc);
    f(acc, r, column);
  }
}

// P^T B by blocks: calls f(block, first row, first column), a block being [kAccBlock][1 to kAccVecs] vectors. P is
// [depth][width], width a multiple of the lanes; lanes from `rows` on are padding whose results don't matter. `columns`
// is a multiple of the vector length; ldb counts T, depth counts T (pairs).
template <class T, class F>
ATTN_INLINE void for_acc_blocks(const T* p, int64_t width, int64_t rows, int64_t depth, const T* b, int64_t ldb,
                                int64_t columns, F&& f) {
  constexpr int L = kLanes<T>;
  const int64_t vecs = columns / L, groups = (vecs + kAccVecs - 1) / kAccVecs;
  int64_t v = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t wide = (vecs - v + groups - g - 1) / (groups - g);  // 4 vectors as 2 + 2, not 3 + 1
    if (wide == 3) acc_strip<T, 3>(p, width, rows, depth, b, ldb, v * L, f);
    else if (wide == 2) acc_strip<T, 2>(p, width, rows, depth, b, ldb, v * L, f);
    else acc_strip<T, 1>(p, width, rows, depth, b, ldb, v * L, f);
    v += wide;
  }
}

// O [width][columns] += P^T B (for_acc_blocks). Without alpha, O is written and what it held doesn't count.
// `between` is called after every block.
template <class T, class F = NothingBetween>
inline void acc_panel(const T* p, int64_t width, int64_t rows, int64_t depth, const T* b, int64_t ldb, int64_t columns,
                      const Acc<T>* alpha, Acc<T>* __restrict o, int64_t ldo, F&& between = {}) {
  const auto store_block = [&](auto& acc, int64_t r0, int64_t column) __attribute__((always_inline)) {
    constexpr int L = kLanes<T>, R = kAccBlock<T>, V = std::extent_v<std::remove_reference_t<decltype(acc)>, 1>;
    // The tile is summed on its own and then added: the running sum sees one rounding a tile, not one a key.
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      ATTN_UNROLL
      for (int v = 0; v < V; ++v) {
        Acc<T>* at = o + (r0 + r) * ldo + column + v * L;
        store(at, alpha ? load(at) * alpha[r0 + r] + acc[r][v] : acc[r][v]);
      }
    }
    between();
  };
  for_acc_blocks<T>(p, width, rows, depth, b, ldb, columns, store_block);
}

template <class T, int NV, class F>
inline void product_strip(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* b, int64_t ldb, int64_t column,
                          F&& f) {
  for_row_blocks(rows, [&](auto at_once, int64_t n) __attribute__((always_inline)) {
    vec<Acc<T>> acc[at_once][NV];
    product_block<T, at_once, NV>(a + n * lda, lda, depth, b + column, ldb, acc);
    f(acc, n, column);
  });
}

// A B by blocks: calls f(block, first row, first column), a block being [1 to kDotRows][1 or 2] vectors. `columns` is a
// multiple of the vector length; lda, depth and ldb count T.
template <class T, class F>
inline void for_product_blocks(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* b, int64_t ldb,
                               int64_t columns, F&& f) {
  constexpr int L = kLanes<T>;
  int64_t x = 0;
  for (; x + 2 * L <= columns; x += 2 * L) product_strip<T, 2>(a, lda, rows, depth, b, ldb, x, f);
  if (x < columns) product_strip<T, 1>(a, lda, rows, depth, b, ldb, x, f);
}

template <class T, bool Add>
inline void rows_product(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* b, int64_t ldb, int64_t columns,
                         Acc<T>* __restrict o, int64_t ldo) {
  const auto store_block = [&](auto& acc, int64_t first, int64_t column) __attribute__((always_inline)) {
    constexpr int L = kLanes<T>, MR = std::extent_v<std::remove_reference_t<decltype(acc)>, 0>,
                  NV = std::extent_v<std::remove_reference_t<decltype(acc)>, 1>;
    ATTN_UNROLL
    for (int m = 0; m < MR; ++m) {
      ATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        Acc<T>* at = o + (first + m) * ldo + column + v * L;
        store(at, Add ? load(at) + acc[m][v] : acc[m][v]);
      }
    }
  };
  for_product_blocks<T>(a, lda, rows, depth, b, ldb, columns, store_block);
}

// O [rows][columns] += A B (for_product_blocks).
template <class T>
inline void add_rows(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* b, int64_t ldb, int64_t columns,
                     Acc<T>* o, int64_t ldo) {
  rows_product<T, true>(a, lda, rows, depth, b, ldb, columns, o, ldo);
}

// O = A B: what it held doesn't count.
template <class T>
inline void multiply_rows(const T* a, int64_t lda, int64_t rows, int64_t depth, const T* b, int64_t ldb,
                          int64_t columns, Acc<T>* o, int64_t ldo) {
  rows_product<T, false>(a, lda, rows, depth, b, ldb, columns, o, ldo);
}

ATTN_NAMESPACE_END
