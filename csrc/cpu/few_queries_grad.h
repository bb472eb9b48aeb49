// Gradient of few_queries.h: one more stream over keys and values, in the same blocks. With weights P and the gradient
// dO of the pooled rows: dP_rt = dO_r . v_t, then per activation
//   softmax over keys     dS = P (dP - delta_r),          delta_r = sum_t P dP = dO_r . out_r
//   softmax over queries  dS = P (dP - sum_r P dP)
//   relu / n              dS = [S > 0] dP / n
// and dk_t = scale sum_r dS q_r, dv_t = sum_r P dO_r, dq_r = scale sum_t dS k_t.
#pragma once

#include "cpu/few_queries.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

// Sums of dq over keys: each of up to so many ranges of consecutive chunks has one, and they are added in order.
constexpr int64_t kQuerySums = 32;

// What is known of the rows, laid out as in few_queries.h.
template <class T> struct RowGradients {
  using S = Sum<T>;
  const S *q, *dout;      // [rows][padded(dim)], [rows][padded(dim_v)]
  const S *lse2, *delta;  // [rows], softmax over keys: lse in base 2 (+inf for rows without keys), delta
  S scale, mean;          // mean: 1 / kept keys, for relu_mean
  S* dq;                  // null or [rows][padded(dim)]: added to
};

// Where the gradients of keys and values go; null = not wanted. `tied`: keys and values are one tensor, whose gradient
// dk takes all of.
template <class T> struct KeyGradRows {
  T *dk, *dv;
  int64_t k_token, k_head, v_token, v_head;
  bool tied;
};

// Position 0 of a sequence in a gradient of keys or values.
template <class T> ATTN_INLINE T* key_rows_of(const View4& v, const SequenceSpan& s) {
  return v.data ? static_cast<T*>(v.data) + s.batch * v.batch + s.first * v.token : nullptr;
}

// out (+)= sum_r weight[r * stride] * row_r, over rows of `ld` sums.
template <bool Add, class S>
ATTN_INLINE void weighted_rows(const S* weight, int64_t stride, const S* rows, int64_t ld, int64_t count, int64_t n,
                               S* out) {
  for_lanes<S>(n, [&](int64_t i, auto w) {
    vec<S> sum{};
    if constexpr (Add) sum = get(out + i, w);
    for (int64_t r = 0; r < count; ++r) sum += get(rows + r * ld + i, w) * weight[r * stride];
    put(out + i, sum, w);
  });
}

// Scratch: weights and their gradients [rows per kv head][kBlockLanes], one row.
template <class S> struct GradScratch {
  S *p, *ds, *row;

  GradScratch(Carve& c, int64_t rows_per_head, int64_t dim, int64_t dim_v)
      : p(c.take<S>(rows_per_head * kBlockLanes<S>)), ds(c.take<S>(rows_per_head * kBlockLanes<S>)),
        row(c.take<S>(dim > dim_v ? dim : dim_v)) {}
};

// From logits p (base 2 for a softmax) and dP in ds to weights and dS.
template <int N, class T>
ATTN_INLINE void block_gradient(PoolActivation activation, int64_t rows, int64_t queries, int64_t first,
                                const RowGradients<T>& g, Sum<T>* p, Sum<T>* ds) {
  using S = Sum<T>;
  constexpr int W = kBlockLanes<S>;
  if (activation == PoolActivation::softmax_queries) {
    for (int64_t h = 0; h < rows; h += queries) {
      BlockWeights<N, S>::softmax_queries(p + h * W, queries);
      for (int t = 0; t < N; ++t) {
        S mean = 0;
        for (int64_t r = h; r < h + queries; ++r) mean += p[r * W + t] * ds[r * W + t];
        for (int64_t r = h; r < h + queries; ++r) ds[r * W + t] = p[r * W + t] * (ds[r * W + t] - mean);
      }
    }
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    S *pr = p + r * W, *dr = ds + r * W;
    if (activation == PoolActivation::softmax_keys) {
      BlockWeights<N, S>::apply_keys(pr, g.lse2[first + r]);
      for (int t = 0; t < N; ++t) dr[t] = pr[t] * (dr[t] - g.delta[first + r]);
    } else {
      for (int t = 0; t < N; ++t) {
        const bool on = pr[t] > 0;
        pr[t] = on ? pr[t] * g.mean : S{0};
        dr[t] = on ? dr[t] * g.mean : S{0};
      }
    }
  }
}

// Writes the gradients of the kept tokens of [begin, end). q2: rows times what the forward multiplied them with.
template <class T>
inline void stream_keys_grad(const KeyRows<T>& keys, PoolActivation activation, int64_t rows_per_head, int64_t queries,
                             const Sum<T>* q2, const RowGradients<T>& g, int64_t begin, int64_t end,
                             const KeyGradRows<T>& grads, const GradScratch<Sum<T>>& z) {
  using S = Sum<T>;
  constexpr int W = kBlockLanes<S>;
  const int64_t q_row = padded<S>(keys.dim), v_row = padded<S>(keys.dim_v);
  keys.for_blocks(begin, end, [&](int64_t head, auto block, const T* const* k, const T* const* v, const int64_t* at) {
    constexpr int N = block;
    const int64_t first = head * rows_per_head;
    for (int64_t r = 0; r < rows_per_head; ++r) {
      dot_rows<N, T>(q2 + (first + r) * q_row, k, head * keys.k_head, keys.dim, z.p + r * W);
      dot_rows<N, T>(g.dout + (first + r) * v_row, v, head * keys.v_head, keys.dim_v, z.ds + r * W);
    }
    block_gradient<N, T>(activation, rows_per_head, queries, first, g, z.p, z.ds);
    for (int64_t r = 0; r < rows_per_head; ++r) {
      for (int t = 0; t < N; ++t) z.ds[r * W + t] *= g.scale;
      if (g.dq) add_weighted<N, T>(g.dq + (first + r) * q_row, S{1}, z.ds + r * W, k, head * keys.k_head, keys.dim);
    }
    const S *q = g.q + first * q_row, *dout = g.dout + first * v_row;
    for (int t = 0; t < N && grads.dk; ++t) {
      weighted_rows<false>(z.ds + t, W, q, q_row, rows_per_head, keys.dim, z.row);
      if (grads.tied) weighted_rows<true>(z.p + t, W, dout, v_row, rows_per_head, keys.dim, z.row);
      scale_row<T>(grads.dk + at[t] * grads.k_token + head * grads.k_head, S{1}, z.row, keys.dim);
    }
    for (int t = 0; t < N && grads.dv; ++t) {
      weighted_rows<false>(z.p + t, W, dout, v_row, rows_per_head, keys.dim_v, z.row);
      scale_row<T>(grads.dv + at[t] * grads.v_token + head * grads.v_head, S{1}, z.row, keys.dim_v);
    }
  });
}

}  // namespace pool
ATTN_NAMESPACE_END
