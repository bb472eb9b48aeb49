// Attention of a few queries (below a vector's worth) over many keys: keys and values are streamed once, in blocks of
// kBlock tokens that stay in L1 between the dot products and the weighted sum; channels lie in SIMD lanes.
//
// "Rows" are the queries of all the heads that share a kv head, heads_kv * rows_per_head of them, laid out
// [kv head][row][channels padded to whole vectors].
#pragma once

#include "cpu/chunks.h"
#include "cpu/exp.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

constexpr int kBlock = 8;
// Weights of a row over a block, padded to whole vectors.
template <class S> constexpr int kBlockLanes = Lanes<S>::n > kBlock ? Lanes<S>::n : kBlock;

template <class S> ATTN_INLINE int64_t padded(int64_t n) { return (n + Lanes<S>::n - 1) / Lanes<S>::n * Lanes<S>::n; }

// out[t] = sum_i q[i] * row_t[i]
template <int N, class T>
ATTN_INLINE void dot_rows(const Sum<T>* q, const T* const* rows, int64_t offset, int64_t n, Sum<T>* out) {
  using S = Sum<T>;
  vec<S> sum[N];
  ATTN_UNROLL
  for (int t = 0; t < N; ++t) sum[t] = vec<S>{};
  for_lanes<S>(n, [&](int64_t i, auto w) {
    const vec<S> x = get(q + i, w);
    ATTN_UNROLL
    for (int t = 0; t < N; ++t) sum[t] += x * get(rows[t] + offset + i, w);
  });
  sum_lanes_of_each<N, S>(sum, out);
}

// acc = acc * alpha + sum_t weight[t] * row_t
template <int N, class T>
ATTN_INLINE void add_weighted(Sum<T>* acc, Sum<T> alpha, const Sum<T>* weight, const T* const* rows, int64_t offset,
                              int64_t n) {
  using S = Sum<T>;
  vec<S> weights[N];
  ATTN_UNROLL
  for (int t = 0; t < N; ++t) weights[t] = splat(weight[t]);
  for_lanes<S>(n, [&](int64_t i, auto w) {
    vec<S> sum{};
    ATTN_UNROLL
    for (int t = 0; t < N; ++t) sum += weights[t] * get(rows[t] + offset + i, w);
    put(acc + i, get(acc + i, w) * alpha + sum, w);
  });
}

// Keys and values of one sequence, token by token; head h starts h * head elements into a token's row.
template <class T> struct KeyRows {
  const T *k, *v;  // position 0
  int64_t k_token, v_token, k_head, v_head;
  int64_t heads, dim, dim_v;
  int64_t batch, first;  // of position 0, for the mask
  MaskView mask;

  // Calls f(head, integral_constant<N>, k rows, v rows, positions) for blocks of kBlock kept tokens, then for single
  // ones: head after head where each head's keys lie together, else all heads of a block.
  template <class F> ATTN_INLINE void for_blocks(int64_t begin, int64_t end, F&& f) const {
    const int64_t span = k_head > k_token ? 1 : heads;
    const T *ks[kBlock], *vs[kBlock];
    int64_t at[kBlock];
    for (int64_t head = 0; head < heads; head += span) {
      int n = 0;
      for (int64_t t = begin; t < end; ++t) {
        if (!taken(mask, batch, first + t)) continue;
        ks[n] = k + t * k_token;
        vs[n] = v + t * v_token;
        at[n] = t;
        if (++n == kBlock) {
          for (int64_t h = head; h < head + span; ++h) f(h, std::integral_constant<int, kBlock>{}, ks, vs, at);
          n = 0;
        }
      }
      for (int i = 0; i < n; ++i) {
        for (int64_t h = head; h < head + span; ++h) f(h, std::integral_constant<int, 1>{}, ks + i, vs + i, at + i);
      }
    }
  }
};

// Weights of a block for a group of rows that belong to one kv head. x [rows][kBlockLanes] holds logits in base-2 units
// (log2 e included) and becomes weights; lanes from N on come out 0.
template <int N, class S> struct BlockWeights {
  static constexpr int W = kBlockLanes<S>, L = Lanes<S>::n;

  static ATTN_INLINE void pad(S* x, S value) {
    for (int t = N; t < W; ++t) x[t] = value;
  }

  // Online softmax over keys: m and l as in softmax_panel.h, alpha rescales what was accumulated.
  static ATTN_INLINE void softmax_keys(S* x, S& m, S& l, S& alpha) {
    pad(x, -kInf<S>);
    S top = m;
    for (int t = 0; t < N; ++t) top = x[t] > top ? x[t] : top;  // a NaN comes through the exponential
    const S reference = top == -kInf<S> ? S{0} : top;
    vec<S> sum{};
    for (int i = 0; i < W; i += L) {
      const vec<S> e = exp2v(load(x + i) - reference);
      store(x + i, e);
      sum += e;
    }
    alpha = m == top ? S{1} : exp2v(splat(m - reference))[0];
    l = l * alpha + sum_lanes<S>(sum);
    m = top;
  }

  // Weights once m (the lse in base 2) is known.
  static ATTN_INLINE void apply_keys(S* x, S lse) {
    pad(x, -kInf<S>);
    for (int i = 0; i < W; i += L) store(x + i, exp2v(load(x + i) - lse));
  }

  // Softmax over `rows` rows, token by token.
  static ATTN_INLINE void softmax_queries(S* x, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) pad(x + r * W, 0);
    for (int i = 0; i < W; i += L) {
      vec<S> top = load(x + i), sum{};
      for (int64_t r = 1; r < rows; ++r) top = max_or_nan(top, load(x + r * W + i));
      for (int64_t r = 0; r < rows; ++r) {
        const vec<S> e = exp2v(load(x + r * W + i) - top);
        store(x + r * W + i, e);
        sum += e;
      }
      for (int64_t r = 0; r < rows; ++r) store(x + r * W + i, load(x + r * W + i) / sum);
    }
    for (int64_t r = 0; r < rows; ++r) pad(x + r * W, 0);
  }

  static ATTN_INLINE void relu(S* x) {
    pad(x, 0);
    for (int i = 0; i < W; i += L) {
      const vec<S> v = load(x + i), zero{};
      store(x + i, v < 0 ? zero : v);
    }
  }
};

// What a chunk of keys contributes to every row: running maximum, sum of weights (softmax over keys), weighted sum.
template <class S> struct RowState {
  S *m, *l, *acc;  // [rows], [rows], [rows][padded(dim_v)]

  void clear(int64_t rows, int64_t dim_v) const {
    fill_row(m, -kInf<S>, rows);
    clear_row(l, rows);
    clear_row(acc, rows * padded<S>(dim_v));
  }
};

// Adds the kept tokens of [begin, end) to `state`. q: all rows, times scale * log2 e (relu: scale alone), channels
// padded. x: scratch, [rows per kv head][kBlockLanes].
template <class T>
inline void stream_keys(const KeyRows<T>& keys, PoolActivation activation, int64_t rows_per_head, int64_t queries,
                        const Sum<T>* q, int64_t begin, int64_t end, const RowState<Sum<T>>& state, Sum<T>* x) {
  using S = Sum<T>;
  constexpr int W = kBlockLanes<S>;
  const int64_t q_row = padded<S>(keys.dim), acc_row = padded<S>(keys.dim_v);
  keys.for_blocks(begin, end, [&](int64_t head, auto block, const T* const* k, const T* const* v, const int64_t*) {
    constexpr int N = block;
    const int64_t first = head * rows_per_head;
    for (int64_t r = 0; r < rows_per_head; ++r) {
      dot_rows<N, T>(q + (first + r) * q_row, k, head * keys.k_head, keys.dim, x + r * W);
    }
    if (activation == PoolActivation::softmax_queries) {
      for (int64_t r = 0; r < rows_per_head; r += queries) BlockWeights<N, S>::softmax_queries(x + r * W, queries);
    }
    for (int64_t r = 0; r < rows_per_head; ++r) {
      S alpha = 1;
      if (activation == PoolActivation::softmax_keys) {
        BlockWeights<N, S>::softmax_keys(x + r * W, state.m[first + r], state.l[first + r], alpha);
      } else if (activation == PoolActivation::relu_mean) {
        BlockWeights<N, S>::relu(x + r * W);
      }
      add_weighted<N, T>(state.acc + (first + r) * acc_row, alpha, x + r * W, v, head * keys.v_head, keys.dim_v);
    }
  });
}

// The states of all chunks of a call.
template <class S> class RowStates {
 public:
  RowStates(int64_t chunks, int64_t rows, int64_t dim_v)
      : rows_(rows), dim_v_(dim_v), size_(rows * (2 + padded<S>(dim_v))), data_(chunks * size_) {}

  RowState<S> at(int64_t chunk) const {
    S* base = data_ + chunk * size_;
    return {base, base + rows_, base + 2 * rows_};
  }

  // Joins chunks [first, last) of one row in order: m, l and acc [dim_v]. Without softmax over keys that is a sum.
  void join(int64_t first, int64_t last, bool softmax, int64_t row, S& m, S& l, S* acc) const {
    m = -kInf<S>;
    l = 0;
    clear_row(acc, dim_v_);
    for (int64_t i = first; softmax && i < last; ++i) {
      const S x = at(i).m[row];
      m = (x > m) | (x != x) ? x : m;
    }
    for (int64_t i = first; i < last; ++i) {
      const RowState<S> from = at(i);
      if (softmax && from.m[row] == -kInf<S>) continue;  // no key here: its weight would be exp(-inf - -inf)
      const S weight = softmax ? std::exp2(from.m[row] - m) : S{1};
      l += weight * from.l[row];
      const S* part = from.acc + row * padded<S>(dim_v_);
      for_lanes<S>(dim_v_, [&](int64_t c, auto w) { put(acc + c, get(acc + c, w) + get(part + c, w) * weight, w); });
    }
  }

 private:
  int64_t rows_, dim_v_, size_;
  Buffer<S> data_;
};

// 1 / kept keys of every sequence, 0 for those without.
template <class S> inline void mean_factors(const QueryPoolParams& p, S* factors) {
  for (int64_t s = 0; s < p.sequences.count; ++s) {
    const SequenceSpan span = sequence_span(p.sequences, s);
    int64_t n = p.mask.data ? 0 : span.length;
    for (int64_t t = 0; p.mask.data && t < span.length; ++t) n += taken(p.mask, span.batch, span.first + t);
    factors[s] = n > 0 ? 1 / static_cast<S>(n) : S{0};
  }
}

}  // namespace pool
ATTN_NAMESPACE_END
