// Query pooling (attn/pool.h). Below kFewQueries queries a head it is bound by memory, and keys are streamed token by
// token (few_queries.h); from there on it is a matrix product, and queries lie in SIMD lanes (query_panels.h).
#pragma once

#include "cpu/few_queries_grad.h"
#include "cpu/query_panels.h"
#include "cpu/query_panels_grad.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

constexpr int64_t kFewQueries = 8;

template <class T> struct FewCall {
  using S = Sum<T>;
  const QueryPoolParams& p;
  const int64_t rows, rows_per_head, q_row, v_row;
  const Chunks chunks;

  explicit FewCall(const QueryPoolParams& params)
      : p(params), rows(p.heads * p.queries), rows_per_head(p.heads_kv > 0 ? rows / p.heads_kv : 0),
        q_row(padded<S>(p.dim)), v_row(padded<S>(p.dim_v)), chunks(p.sequences, chunk_size(p)) {}

  // As for other token-wise work, but the state of a chunk is to be small against its keys.
  static int64_t chunk_size(const QueryPoolParams& p) {
    const int64_t n = chunk_tokens(p.heads_kv * (p.dim + p.dim_v) / 2);
    return n < 64 ? 64 : n;
  }

  bool shared() const { return p.q.batch == 0; }
  int64_t query_sets() const { return shared() ? 1 : p.sequences.count; }

  // The queries times `factor`, channels padded: [sets][rows][q_row].
  void pack(const View4& from, int64_t sets, int64_t dim, S factor, S* to) const {
    const int64_t ld = padded<S>(dim);
    parallel_items(sets * p.heads, [&](int64_t item, int) {
      for (int64_t m = 0; m < p.queries; ++m) {
        const T* x = static_cast<const T*>(from.data) + item / p.heads * from.batch + item % p.heads * from.head +
                     m * from.token;
        S* row = to + (item * p.queries + m) * ld;
        clear_row(row, ld);
        for_lanes<S>(dim, [&](int64_t i, auto w) { put(row + i, get(x + i, w) * factor, w); });
      }
    });
  }

  S logit_factor() const {
    return static_cast<S>(p.activation == PoolActivation::relu_mean ? p.scale : p.scale * kLog2e);
  }

  const S* of_sequence(const S* packed, int64_t sequence) const {
    return packed + (shared() ? 0 : sequence) * rows * q_row;
  }

  KeyRows<T> key_rows(const SequenceSpan& s) const {
    return {static_cast<const T*>(p.k.data) + s.batch * p.k.batch + s.first * p.k.token,
            static_cast<const T*>(p.v.data) + s.batch * p.v.batch + s.first * p.v.token,
            p.k.token,
            p.v.token,
            p.k.head,
            p.v.head,
            p.heads_kv,
            p.dim,
            p.dim_v,
            s.batch,
            s.first,
            p.mask};
  }
};

template <class T> inline void few_forward(const QueryPoolParams& p) {
  using S = Sum<T>;
  const FewCall<T> call(p);
  const bool softmax = p.activation == PoolActivation::softmax_keys, mean = p.activation == PoolActivation::relu_mean;
  const Buffer<S> q(call.query_sets() * call.rows * call.q_row);
  call.pack(p.q, call.query_sets(), p.dim, call.logit_factor(), q);
  const Buffer<S> factors(mean ? p.sequences.count : 0);
  if (mean) mean_factors<S>(p, factors);
  const RowStates<S> states(call.chunks.count(), call.rows, p.dim_v);
  struct Scratch {
    S* x;
    Scratch(Carve& c, int64_t n) : x(c.take<S>(n)) {}
  };
  parallel_items(call.chunks.count(), [&](int64_t item, int) {
    const Chunk c = call.chunks.at(item);
    const RowState<S> state = states.at(item);
    state.clear(call.rows, p.dim_v);
    stream_keys<T>(call.key_rows(c.span), p.activation, call.rows_per_head, p.queries, call.of_sequence(q, c.sequence),
                   c.begin, c.end, state, carve<Scratch>(call.rows_per_head * kBlockLanes<S>).x);
  });
  parallel_items(p.sequences.count * p.heads, [&](int64_t item, int) {
    const int64_t sequence = item / p.heads, head = item % p.heads;
    S* acc = carve<Scratch>(call.v_row).x;
    for (int64_t row = head * p.queries; row < (head + 1) * p.queries; ++row) {
      S m, l;
      states.join(call.chunks.first(sequence), call.chunks.first(sequence + 1), softmax, row, m, l, acc);
      const bool empty = softmax && m == -kInf<S>;
      const S factor = empty ? S{0} : softmax ? 1 / l : mean ? factors[sequence] : S{1};
      const int64_t at = sequence * call.rows + row;
      scale_row<T>(static_cast<T*>(p.out) + at * p.dim_v, factor, acc, p.dim_v);
      if (softmax) { static_cast<S*>(p.lse)[at] = empty ? -kInf<S> : (m + std::log2(l)) * static_cast<S>(kLn2); }
    }
  });
}

// dout, and what a softmax over keys needs of the forward's results, per sequence.
template <class T> struct FewRows {
  using S = Sum<T>;
  const Buffer<S> dout, lse2, delta;

  FewRows(const FewCall<T>& call, const QueryPoolBackwardParams& b)
      : dout(call.p.sequences.count * call.rows * call.v_row), lse2(call.p.sequences.count * call.rows),
        delta(call.p.sequences.count * call.rows) {
    const QueryPoolParams& p = call.p;
    call.pack(b.dout, p.sequences.count, p.dim_v, S{1}, dout);
    if (p.activation != PoolActivation::softmax_keys) return;
    for (int64_t i = 0; i < p.sequences.count * call.rows; ++i) {
      const S lse = static_cast<const S*>(p.lse)[i];
      lse2[i] = lse == -kInf<S> ? kInf<S> : lse * static_cast<S>(kLog2e);
      const T* out = static_cast<const T*>(p.out) + i * p.dim_v;
      dot_rows<1, T>(dout + i * call.v_row, &out, 0, p.dim_v, delta + i);
    }
  }
};

template <class T> inline void few_backward(const QueryPoolBackwardParams& b) {
  using S = Sum<T>;
  const QueryPoolParams& p = b.forward;
  const FewCall<T> call(p);
  const Buffer<S> q2(call.query_sets() * call.rows * call.q_row), q(call.query_sets() * call.rows * call.q_row);
  call.pack(p.q, call.query_sets(), p.dim, call.logit_factor(), q2);
  call.pack(p.q, call.query_sets(), p.dim, S{1}, q);
  const FewRows<T> known(call, b);
  const bool mean = p.activation == PoolActivation::relu_mean;
  const Buffer<S> factors(mean ? p.sequences.count : 0);
  if (mean) mean_factors<S>(p, factors);

  const int64_t count = call.chunks.count(), sum_size = call.rows * call.q_row;
  const int64_t per_range = b.shared ? (count + kQuerySums - 1) / kQuerySums : 1;
  const int64_t ranges = per_range > 0 ? (count + per_range - 1) / per_range : 0;
  const Buffer<S> sums(b.dq ? ranges * sum_size : 0);
  parallel_items(ranges, [&](int64_t range, int) {
    S* dq = b.dq ? sums + range * sum_size : nullptr;
    if (dq) clear_row(dq, sum_size);
    for (int64_t i = range * per_range; i < count && i < (range + 1) * per_range; ++i) {
      const Chunk c = call.chunks.at(i);
      const auto scratch = carve<GradScratch<S>>(call.rows_per_head, p.dim, p.dim_v);
      const int64_t at = c.sequence * call.rows;
      T *dk = key_rows_of<T>(b.dk, c.span), *dv = key_rows_of<T>(b.dv, c.span);
      stream_keys_grad<T>(call.key_rows(c.span), p.activation, call.rows_per_head, p.queries,
                          call.of_sequence(q2, c.sequence),
                          {call.of_sequence(q, c.sequence), known.dout + at * call.v_row, known.lse2 + at,
                           known.delta + at, static_cast<S>(p.scale), mean ? factors[c.sequence] : S{0}, dq},
                          c.begin, c.end, {dk, dv, b.dk.token, b.dk.head, b.dv.token, b.dv.head, false}, scratch);
      for (int64_t t = c.begin; t < c.end; ++t) {
        if (taken(p.mask, c.span.batch, c.span.first + t)) continue;
        for (int64_t h = 0; h < p.heads_kv; ++h) {
          if (dk) clear_row(dk + h * b.dk.head + t * b.dk.token, p.dim);
          if (dv) clear_row(dv + h * b.dv.head + t * b.dv.token, p.dim_v);
        }
      }
    }
  });
  if (!b.dq) return;
  const int64_t sets = b.shared ? 1 : p.sequences.count;
  parallel_items(sets * p.heads, [&](int64_t item, int) {
    const int64_t set = item / p.heads, head = item % p.heads, size = p.queries * call.q_row;
    const int64_t first = b.shared ? 0 : call.chunks.first(set), last = b.shared ? ranges : call.chunks.first(set + 1);
    T* dq = static_cast<T*>(b.dq) + item * p.queries * p.dim;
    if (first == last) return clear_row(dq, p.queries * p.dim);
    S* sum = sums + first * sum_size + head * size;
    for (int64_t i = first + 1; i < last; ++i) add_row<S>(sum, sums + i * sum_size + head * size, size);
    for (int64_t m = 0; m < p.queries; ++m) scale_row<T>(dq + m * p.dim, S{1}, sum + m * call.q_row, p.dim);
  });
}

// Keys of a packed batch that belong to no sequence have no gradient.
template <class T> inline void clear_key_tail(const QueryPoolParams& p, const View4& rows, int64_t dim) {
  if (!rows.data || !p.sequences.cu) return;
  for (int64_t h = 0; h < p.heads_kv; ++h) {
    for (int64_t t = p.sequences.cu[p.sequences.count]; t < p.sequences.tokens; ++t) {
      clear_row(static_cast<T*>(rows.data) + h * rows.head + t * rows.token, dim);
    }
  }
}

template <class T> inline void query_forward(const QueryPoolParams& p) {
  if (p.queries < kFewQueries) few_forward<T>(p);
  else panel_forward<T>(p);
}

template <class T> inline void query_backward(const QueryPoolBackwardParams& b) {
  if (b.forward.queries < kFewQueries) few_backward<T>(b);
  else panel_backward<T>(b);
  clear_key_tail<T>(b.forward, b.dk, b.forward.dim);
  clear_key_tail<T>(b.forward, b.dv, b.forward.dim_v);
}

}  // namespace pool

inline void query_pool_forward(const QueryPoolParams& p) { ATTN_POOL_DISPATCH(p.dtype, pool::query_forward, p) }
inline void query_pool_backward(const QueryPoolBackwardParams& p){
    ATTN_POOL_DISPATCH(p.forward.dtype, pool::query_backward, p)}

ATTN_NAMESPACE_END
