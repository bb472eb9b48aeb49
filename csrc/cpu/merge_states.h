// Merge of partial attention results and its gradient (formulas: attn/merge.h). Memory-bound: each part is read once
// in the forward, twice in the backward.
#pragma once

#include "attn/merge.h"
#include "attn/parallel.h"
#include "cpu/simd.h"

ATTN_NAMESPACE_BEGIN

namespace merge {

// Work items are runs of rows of about this many elements: large enough that taking one from the queue is free.
constexpr int64_t kItemElements = 1 << 15;
// Features merged at once: accumulators stay in L1.
constexpr int64_t kChunk = 256;

// Type of sums, weights and lse for elements of type T.
template <class T> struct SumOf { using type = float; };
template <> struct SumOf<double> { using type = double; };
template <class T> using Sum = typename SumOf<T>::type;

struct Row { int64_t batch, head, token; };

// Calls fn(flat index, row) for every row of [B, H, T], in parallel.
template <class F>
inline void for_rows(int64_t batch, int64_t heads, int64_t tokens, int64_t row_elements, F&& fn) {
  const int64_t rows = batch * heads * tokens;
  const int64_t per_item = row_elements >= kItemElements ? 1 : kItemElements / (row_elements > 0 ? row_elements : 1);
  parallel_items((rows + per_item - 1) / per_item, [&](int64_t item, int) {
    const int64_t end = (item + 1) * per_item < rows ? (item + 1) * per_item : rows;
    for (int64_t r = item * per_item; r < end; ++r) { fn(r, Row{r / tokens / heads, r / tokens % heads, r % tokens}); }
  });
}

template <class T> ATTN_INLINE T* row_of(const PartsView& v, int64_t part, const Row& r) {
  return static_cast<T*>(v.data) + part * v.part + r.batch * v.batch + r.head * v.head + r.token * v.token;
}

// acc[0, n) += weight * x[0, n)
template <class T> ATTN_INLINE void add_scaled(Sum<T>* acc, Sum<T> weight, const T* x, int64_t n) {
  using S = Sum<T>;
  constexpr int lanes = Lanes<S>::n;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(acc + i, load(acc + i) + weight * load_as(x + i, S{}));
  for (; i < n; ++i) acc[i] += weight * to_float(x[i]);
}

template <class T> ATTN_INLINE void store_row(T* out, const Sum<T>* acc, int64_t n) {
  using S = Sum<T>;
  constexpr int lanes = Lanes<S>::n;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_as(out + i, load(acc + i));
  for (; i < n; ++i) out[i] = From<T>::of(acc[i]);
}

// out[0, n) = weight * x[0, n); zero, without reading x, where the weight is.
template <class T> ATTN_INLINE void store_scaled(T* out, Sum<T> weight, const T* x, int64_t n) {
  using S = Sum<T>;
  constexpr int lanes = Lanes<S>::n;
  int64_t i = 0;
  if (weight == 0) {
    for (; i < n; ++i) out[i] = From<T>::of(S{0});
    return;
  }
  for (; i + lanes <= n; i += lanes) store_as(out + i, weight * load_as(x + i, S{}));
  for (; i < n; ++i) out[i] = From<T>::of(weight * to_float(x[i]));
}

template <class T> ATTN_INLINE Sum<T> dot(const T* a, const T* b, int64_t n) {
  using S = Sum<T>;
  constexpr int lanes = Lanes<S>::n;
  vec<S> acc{};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) acc += load_as(a + i, S{}) * load_as(b + i, S{});
  S sum = 0;
  for (int lane = 0; lane < lanes; ++lane) sum += acc[lane];
  for (; i < n; ++i) sum += to_float(a[i]) * to_float(b[i]);
  return sum;
}

template <class T> inline void forward(const MergeStatesParams& p) {
  using S = Sum<T>;
  for_rows(p.batch, p.heads, p.tokens, p.parts * p.dim, [&p](int64_t index, const Row& row) {
    const S lse = merged_lse<S>(p.parts, [&](int64_t n) { return *row_of<S>(p.lses, n, row); });
    static_cast<S*>(p.lse)[index] = lse;
    T* out = static_cast<T*>(p.out) + index * p.dim;
    for (int64_t begin = 0; begin < p.dim; begin += kChunk) {
      const int64_t n = p.dim - begin < kChunk ? p.dim - begin : kChunk;
      alignas(64) S acc[kChunk] = {};
      for (int64_t part = 0; part < p.parts; ++part) {
        const S weight = part_weight(*row_of<S>(p.lses, part, row), lse);
        if (weight != 0) add_scaled<T>(acc, weight, row_of<const T>(p.outs, part, row) + begin, n);
      }
      store_row<T>(out + begin, acc, n);
    }
  });
}

// d out_n = w_n dout;  d l_n = w_n (dlse + dout . out_n - sum_m w_m dout . out_m)
template <class T> inline void backward(const MergeStatesBackwardParams& p) {
  using S = Sum<T>;
  const int64_t rows = p.batch * p.heads * p.tokens;
  for_rows(p.batch, p.heads, p.tokens, p.parts * p.dim, [&p, rows](int64_t index, const Row& row) {
    const S lse = static_cast<const S*>(p.lse)[index];
    const T* dout = static_cast<const T*>(p.dout.data) + row.batch * p.dout.batch + row.head * p.dout.head +
                    row.token * p.dout.token;
    S dlse = 0;
    if (p.dlse.data) {
      dlse = static_cast<const S*>(
          p.dlse.data)[row.batch * p.dlse.batch + row.head * p.dlse.head + row.token * p.dlse.token];
    }
    S* dlses = static_cast<S*>(p.dlses) + index;
    S mean = 0;
    for (int64_t part = 0; part < p.parts; ++part) {
      const S weight = part_weight(*row_of<S>(p.lses, part, row), lse);
      const S projection = weight != 0 ? dot<T>(dout, row_of<const T>(p.outs, part, row), p.dim) : S{0};
      store_scaled<T>(static_cast<T*>(p.douts) + (part * rows + index) * p.dim, weight, dout, p.dim);
      dlses[part * rows] = projection;
      mean += weight * projection;
    }
    for (int64_t part = 0; part < p.parts; ++part) {
      const S weight = part_weight(*row_of<S>(p.lses, part, row), lse);
      dlses[part * rows] = weight != 0 ? weight * (dlse + dlses[part * rows] - mean) : S{0};
    }
  });
}

}  // namespace merge

inline void merge_states(const MergeStatesParams& p) {
  switch (p.dtype) {
    case DType::f32: return merge::forward<float>(p);
    case DType::f64: return merge::forward<double>(p);
    case DType::bf16: return merge::forward<bf16>(p);
    case DType::f16: return merge::forward<f16>(p);
  }
}

inline void merge_states_backward(const MergeStatesBackwardParams& p) {
  switch (p.dtype) {
    case DType::f32: return merge::backward<float>(p);
    case DType::f64: return merge::backward<double>(p);
    case DType::bf16: return merge::backward<bf16>(p);
    case DType::f16: return merge::backward<f16>(p);
  }
}

ATTN_NAMESPACE_END
