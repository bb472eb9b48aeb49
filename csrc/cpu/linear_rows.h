// What the forward and backward passes of linear attention share: where rows lie, how they are loaded, and states
// between the tensors' form and the padded one of ScanProduct.
#pragma once

#include "cpu/feature_rows.h"
#include "cpu/scan_plan.h"
#include "cpu/scan_product.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

ATTN_INLINE int64_t min_count(int64_t a, int64_t b) { return a < b ? a : b; }

template <class In> ATTN_INLINE In* row_at(const View4& view, int64_t batch, int64_t head, int64_t token) {
  return static_cast<In*>(view.data) + batch * view.batch + head * view.head + token * view.token;
}

// Rows fetched ahead of their use. In a [B, T, H, D] tensor the rows of a head lie so far apart that hardware fetches
// none in advance; an access takes 20 to 100 ns, a row about 10 to load.
constexpr int64_t kRowsAhead = 32;

template <class In> struct LinearRows {
  using T = Operand<In>;
  using A = Acc<T>;

  const LinearParams& p;
  const int64_t features, group;  // group: query heads of a kv head

  explicit LinearRows(const LinearParams& params)
      : p(params), features(feature_count(params.map, params.dim)), group(params.heads / params.heads_kv) {}

  // Groups of a scan are (sequence, kv head) pairs.
  int64_t groups() const { return p.sequences * p.heads_kv; }
  Stretch queries(int64_t g) const { return stretch(p.cu, g / p.heads_kv, p.tq); }
  Stretch keys(int64_t g) const { return stretch(p.cu, g / p.heads_kv, p.tk); }
  int64_t head_kv(int64_t g) const { return g % p.heads_kv; }
  int64_t segment() const { return segment_tokens(features * p.dim_v, 2 * p.dim + p.dim_v); }

  // fn(first, n) for the chunks of a segment of `count` tokens, in order.
  template <class F> void for_chunks(int64_t count, int64_t segment_index, F&& fn) const {
    const int64_t begin = segment_index * segment(), end = min_count(begin + segment(), count);
    for (int64_t first = begin; first < end; first += kChunk) fn(first, min_count(kChunk, end - first));
  }
  template <class F> void for_chunks_reversed(int64_t count, int64_t segment_index, F&& fn) const {
    const int64_t begin = segment_index * segment(), end = min_count(begin + segment(), count);
    for (int64_t first = begin + (end - begin - 1) / kChunk * kChunk; first >= begin; first -= kChunk) {
      fn(first, min_count(kChunk, end - first));
    }
  }

  bool kept(const Stretch& s, int64_t i) const {
    return !p.key_mask.data || p.key_mask.data[s.batch * p.key_mask.batch + (s.first + i) * p.key_mask.token] != 0;
  }
  const In* q(const Stretch& s, int64_t head, int64_t i) const {
    return row_at<const In>(p.q, s.batch, head, s.first + i);
  }
  const In* k(const Stretch& s, int64_t head, int64_t i) const {
    return row_at<const In>(p.k, s.batch, head, s.first + i);
  }
  const In* v(const Stretch& s, int64_t head, int64_t i) const {
    return row_at<const In>(p.v, s.batch, head, s.first + i);
  }

  void query_features(const Stretch& s, int64_t head, int64_t i, A* to, int64_t ld) const {
    feature_row(p.map, q(s, head, i), p.dim, to, ld);
  }
  // Masked keys are zero in every product.
  void key_features(const Stretch& s, int64_t head, int64_t i, A* to, int64_t ld) const {
    if (kept(s, i)) feature_row(p.map, k(s, head, i), p.dim, to, ld);
    else zero_row(to, ld);
  }
  void value(const Stretch& s, int64_t head, int64_t i, A* to, int64_t ld) const {
    if (kept(s, i)) load_row(v(s, head, i), p.dim_v, to, ld);
    else zero_row(to, ld);
  }

  // Between the tensors' [F, Dv] or [F] and padded rows.
  void pad_state(const void* from, int64_t g, A* to, int64_t ld) const {
    const A* rows = static_cast<const A*>(from) + g * features * p.dim_v;
    for (int64_t f = 0; f < features; ++f) load_row(rows + f * p.dim_v, p.dim_v, to + f * ld, ld);
  }
  void pad_sum(const void* from, int64_t g, A* to, int64_t ld) const {
    load_row(static_cast<const A*>(from) + g * features, features, to, ld);
  }
  void unpad_state(const A* from, int64_t ld, void* to, int64_t g) const {
    A* rows = static_cast<A*>(to) + g * features * p.dim_v;
    for (int64_t f = 0; f < features; ++f) std::memcpy(rows + f * p.dim_v, from + f * ld, p.dim_v * sizeof(A));
  }
  void unpad_sum(const A* from, void* to, int64_t g) const {
    std::memcpy(static_cast<A*>(to) + g * features, from, features * sizeof(A));
  }

  // Rows of packed tensors past the last sequence hold nothing: their results are zero.
  template <class F> void for_unused_tokens(int64_t tokens, F&& fn) const {
    for (int64_t t = p.cu ? p.cu[p.sequences] : tokens; t < tokens; ++t) fn(t);
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
