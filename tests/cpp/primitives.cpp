// Compiled once per instruction set, with its flags: the building blocks behind plain function pointers.
#include "primitives.h"

#include <cstdlib>

#include "cpu/exp.h"
#include "cpu/hip_select.h"
#include "cpu/pack.h"

ATTN_NAMESPACE_BEGIN
namespace {

// Heap memory of exactly n elements, so that a sanitizer guards both ends.
template <class T> struct Buffer {
  T* data;
  explicit Buffer(int64_t n) : data(static_cast<T*>(std::malloc(n * sizeof(T) + (n == 0)))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

template <class T> T operand(const double* x, int64_t stride, bool second) {
  if constexpr (kPairRows<T>) {
    const bf16 lo = From<bf16>::of(static_cast<float>(x[0]));
    const bf16 hi = second ? From<bf16>::of(static_cast<float>(x[stride])) : bf16{0};
    return {lo.bits | static_cast<uint32_t>(hi.bits) << 16};
  } else {
    return static_cast<T>(x[0]);
  }
}

// x [n][m] with neighbours along m combined: [n][depth_of(m)].
template <class T> void fill_rows_paired(const double* x, int64_t n, int64_t m, T* to) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t d = 0; d < depth_of<T>(m); ++d) {
      to[i * depth_of<T>(m) + d] = operand<T>(x + i * m + d * kPair<T>, 1, d * kPair<T> + 1 < m);
    }
  }
}

// x [m][n] with neighbours along m combined: [depth_of(m)][n].
template <class T> void fill_columns_paired(const double* x, int64_t m, int64_t n, T* to) {
  for (int64_t d = 0; d < depth_of<T>(m); ++d) {
    for (int64_t i = 0; i < n; ++i) to[d * n + i] = operand<T>(x + d * kPair<T> * n + i, n, d * kPair<T> + 1 < m);
  }
}

template <class T> void dot_panel_of(int vectors, int64_t rows, int64_t depth, const double* a, const double* b,
                                     double c, double* s, double* top) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const int64_t width = vectors * L, d = depth_of<T>(depth);
  Buffer<T> at(rows * d), bt(d * width);
  Buffer<A> st(rows * width);
  fill_rows_paired(a, rows, depth, at.data);
  fill_columns_paired(b, depth, width, bt.data);
  vec<A> best[kPanelVecs];
  for (auto& x : best) x = splat(-static_cast<A>(__builtin_inff()));
  const auto dot = [&](auto factor) {
    if (vectors == 1) dot_panel<T, 1>(at.data, d, rows, d, bt.data, factor, st.data, best);
    else dot_panel<T, 2>(at.data, d, rows, d, bt.data, factor, st.data, best);
  };
  if (c == 1) dot(Unscaled{});
  else dot(static_cast<A>(c));
  for (int64_t i = 0; i < rows * width; ++i) s[i] = st.data[i];
  for (int64_t i = 0; i < width; ++i) top[i] = best[i / L][i % L];
}

template <class T> void dot_max_of(int vectors, int64_t rows, int64_t depth, const double* a, const double* b,
                                   double* top) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const int64_t width = vectors * L, d = depth_of<T>(depth);
  Buffer<T> at(rows * d), bt(d * width);
  Buffer<A> lanes(rows * L), best(rows);
  Buffer<const T*> row(rows);
  fill_rows_paired(a, rows, depth, at.data);
  fill_columns_paired(b, depth, width, bt.data);
  for (int64_t i = 0; i < rows; ++i) row.data[i] = at.data + (rows - 1 - i) * d;
  // In every other case what the lanes held must not count.
  const bool fresh = rows % 2 == 0;
  const A infinity = static_cast<A>(__builtin_inff());
  for (int64_t i = 0; i < rows * L; ++i) lanes.data[i] = fresh ? infinity : -infinity;
  if (vectors == 1) dot_max_panel<T, 1>(row.data, rows, d, bt.data, fresh, lanes.data, [] {});
  else dot_max_panel<T, 2>(row.data, rows, d, bt.data, fresh, lanes.data, [] {});
  lane_maxima<A>(lanes.data, rows, best.data);
  for (int64_t i = 0; i < rows; ++i) top[rows - 1 - i] = best.data[i];
}

template <class T> void acc_panel_of(int vectors, int64_t rows, int64_t depth, int64_t columns, const double* p,
                                     const double* b, const double* alpha, double* o) {
  using A = Acc<T>;
  constexpr int L = kLanes<T>;
  const int64_t width = vectors * L, d = depth_of<T>(depth);
  Buffer<T> pt(d * width), bt(d * columns);
  Buffer<A> at(width), ot(width * columns);
  fill_columns_paired(p, depth, width, pt.data);
  fill_columns_paired(b, depth, columns, bt.data);
  for (int64_t i = 0; i < width; ++i) at.data[i] = static_cast<A>(alpha[i]);
  for (int64_t i = 0; i < width * columns; ++i) ot.data[i] = static_cast<A>(o[i]);
  acc_panel<T>(pt.data, width, rows, d, bt.data, columns, columns, at.data, ot.data, columns);
  for (int64_t i = 0; i < width * columns; ++i) o[i] = ot.data[i];
}

template <class T>
void add_rows_of(int64_t rows, int64_t depth, int64_t columns, const double* a, const double* b, double* o) {
  using A = Acc<T>;
  const int64_t d = depth_of<T>(depth);
  Buffer<T> at(rows * d), bt(d * columns);
  Buffer<A> ot(rows * columns);
  fill_rows_paired(a, rows, depth, at.data);
  fill_columns_paired(b, depth, columns, bt.data);
  for (int64_t i = 0; i < rows * columns; ++i) ot.data[i] = static_cast<A>(o[i]);
  add_rows<T>(at.data, d, rows, d, bt.data, columns, columns, ot.data, columns);
  for (int64_t i = 0; i < rows * columns; ++i) o[i] = ot.data[i];
}

template <class T> constexpr ProductTable products() {
  return {kLanes<T>, kPair<T>, dot_panel_of<T>, dot_max_of<T>, acc_panel_of<T>, add_rows_of<T>};
}

// y[i] = f(x[i]) a vector at a time; the last one is padded with its first element.
template <class A, class F> void map(const A* x, A* y, int64_t n, F&& f) {
  constexpr int L = Lanes<A>::n;
  for (int64_t i = 0; i < n; i += L) {
    A in[L], out[L];
    for (int k = 0; k < L; ++k) in[k] = x[i + k < n ? i + k : i];
    store(out, f(load(in)));
    for (int k = 0; k < L && i + k < n; ++k) y[i + k] = out[k];
  }
}

void exp2_f32(const float* x, float* y, int64_t n) {
  map(x, y, n, [](f32v v) { return exp2v(v); });
}
void exp2_short(const float* x, float* y, int64_t n) {
  map(x, y, n, [](f32v v) { return exp2_by<4>(v); });
}
void exp2_f64(const double* x, double* y, int64_t n) {
  map(x, y, n, [](f64v v) { return exp2v(v); });
}
void tanh_f32(const float* x, float* y, int64_t n) {
  map(x, y, n, [](f32v v) { return tanhv<f32v>(v); });
}

template <class H> void widen(const uint16_t* x, float* by_vector, float* by_scalar, int64_t n) {
  static_assert(sizeof(H) == sizeof(uint16_t), "bits");
  const H* h = reinterpret_cast<const H*>(x);
  for (int64_t i = 0; i < n; i += Lanes<float>::n) store(by_vector + i, load_as(h + i, 0.f));
  for (int64_t i = 0; i < n; ++i) by_scalar[i] = to_float(h[i]);
}

template <class H> void narrow(const float* x, uint16_t* by_vector, uint16_t* by_scalar, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<float>::n) store_as(reinterpret_cast<H*>(by_vector) + i, load(x + i));
  for (int64_t i = 0; i < n; ++i) by_scalar[i] = From<H>::of(x[i]).bits;
}

void pairs(const float* lo, const float* hi, uint32_t* to, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<float>::n) {
    const u32v x = make_pairs(load(lo + i), load(hi + i));
    std::memcpy(to + i, &x, sizeof x);
  }
}

}  // namespace

extern const PrimitiveTable primitive_table;
const PrimitiveTable primitive_table = {
    .bf16_dot = ATTN_BF16_DOT != 0,
    .f32 = products<float>(),
    .f64 = products<double>(),
    .bf16_pairs = products<bf16x2>(),
    .exp2_f32 = exp2_f32,
    .exp2_short = exp2_short,
    .exp2_f64 = exp2_f64,
    .tanh_f32 = tanh_f32,
    .bf16_to_float = widen<bf16>,
    .f16_to_float = widen<f16>,
    .float_to_bf16 = narrow<bf16>,
    .float_to_f16 = narrow<f16>,
    .make_pairs = pairs,
    .mth_largest = mth_largest,
};

ATTN_NAMESPACE_END
