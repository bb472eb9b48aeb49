// What the passes of flow attention share: the tokens that masks keep, rows of sinks and sources, and statistics.
#pragma once

#include "cpu/flow_blocks.h"
#include "cpu/linear_rows.h"
#include "cpu/scan_plan.h"
#include "cpu/scan_product.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// The kept tokens of one sequence.
struct Tokens {
  int64_t batch, first, count;
  const int32_t* index;  // null: token i is first + i

  int64_t at(int64_t i) const { return index ? index[i] : first + i; }
};

class TokenLists {
 public:
  TokenLists(const MaskView& mask, const int32_t* cu, int64_t sequences, int64_t tokens)
      : mask_(mask), cu_(cu), sequences_(sequences), tokens_(tokens) {
    if (!mask.data) return;
    index_.resize(cu ? tokens : sequences * tokens);
    count_.resize(sequences);
    parallel_items(sequences, [this](int64_t s, int) {
      const Stretch all = stretch(cu_, s, tokens_);
      int32_t* to = index_.data() + all.batch * tokens_ + all.first;
      int64_t n = 0;
      for (int64_t t = all.first; t < all.first + all.count; ++t) {
        if (kept(all.batch, t)) to[n++] = static_cast<int32_t>(t);
      }
      count_[s] = n;
    });
  }

  Tokens of(int64_t sequence) const {
    const Stretch all = stretch(cu_, sequence, tokens_);
    if (!mask_.data) return {all.batch, all.first, all.count, nullptr};
    return {all.batch, all.first, count_[sequence], index_.data() + all.batch * tokens_ + all.first};
  }

  // fn(batch, token) for every token that no sequence keeps.
  template <class F> void for_dropped(F&& fn) const {
    const int64_t batch = cu_ ? 1 : sequences_, end = cu_ ? cu_[sequences_] : tokens_;
    if (!mask_.data && end == tokens_) return;
    parallel_items(batch, [&](int64_t b, int) {
      for (int64_t t = 0; t < tokens_; ++t) {
        if (t >= end || (mask_.data && !kept(b, t))) fn(b, t);
      }
    });
  }

 private:
  bool kept(int64_t batch, int64_t t) const { return mask_.data[batch * mask_.batch + t * mask_.token] != 0; }

  MaskView mask_;
  const int32_t* cu_;
  int64_t sequences_, tokens_;
  std::vector<int32_t> index_;
  std::vector<int64_t> count_;
};

// ---- rows and statistics by (sequence, query head) -----------------------------------------------------------------

template <class In> struct FlowRows {
  using T = Operand<In>;
  using A = Acc<T>;

  const FlowParams& p;
  const int64_t ld, ld_v;  // padded rows of q and k, of v
  const int64_t segment;   // tokens
  const TokenLists query_lists, key_lists;

  explicit FlowRows(const FlowParams& params)
      : p(params), ld(round_up_lanes<T>(params.dim)), ld_v(round_up_lanes<T>(params.dim_v)),
        segment(segment_tokens(params.dim * params.dim_v, 2 * params.dim + params.dim_v)),
        query_lists(params.query_mask, params.cu, params.sequences, params.tq),
        key_lists(params.causal ? params.query_mask : params.key_mask, params.cu, params.sequences, params.tk) {}

  int64_t groups() const { return p.sequences * p.heads; }
  int64_t head(int64_t g) const { return g % p.heads; }
  int64_t head_kv(int64_t g) const { return head(g) / (p.heads / p.heads_kv); }
  Tokens queries(int64_t g) const { return query_lists.of(g / p.heads); }
  Tokens keys(int64_t g) const { return key_lists.of(g / p.heads); }

  A eps() const { return static_cast<A>(p.eps); }
  A outside() const { return static_cast<A>(p.outside); }
  A clamp() const { return static_cast<A>(p.clamp); }

  // Statistics from kept token i on: of sinks the flow into them and that conserved; of sources the flow out of them,
  // that conserved, and their weight in the softmax.
  A* incoming(const Tokens& t, int64_t g, int64_t i) const { return sink_row(t, g, 0) + i; }
  A* conserved_sink(const Tokens& t, int64_t g, int64_t i) const { return sink_row(t, g, 1) + i; }
  A* outgoing(const Tokens& t, int64_t g, int64_t i) const { return source_row(t, g, 0) + i; }
  A* conserved_source(const Tokens& t, int64_t g, int64_t i) const { return source_row(t, g, 1) + i; }
  A* weight(const Tokens& t, int64_t g, int64_t i) const { return source_row(t, g, 2) + i; }

  const In* q_row(const Tokens& t, int64_t g, int64_t i) const {
    return row_at<const In>(p.q, t.batch, head(g), t.at(i));
  }
  const In* k_row(const Tokens& t, int64_t g, int64_t i) const {
    return row_at<const In>(p.k, t.batch, head_kv(g), t.at(i));
  }
  const In* v_row(const Tokens& t, int64_t g, int64_t i) const {
    return row_at<const In>(p.v, t.batch, head_kv(g), t.at(i));
  }

  // Rows first, ..., first + n - 1 as features, `width` apart.
  template <class F>
  void load_sinks(const Tokens& t, int64_t g, int64_t first, int64_t n, F* to, int64_t width) const {
    load_features(t, first, n, to, width, [&](int64_t i) { return q_row(t, g, i); });
  }
  template <class F>
  void load_sources(const Tokens& t, int64_t g, int64_t first, int64_t n, F* to, int64_t width) const {
    load_features(t, first, n, to, width, [&](int64_t i) { return k_row(t, g, i); });
  }
  void load_sinks(const Tokens& t, int64_t g, int64_t first, int64_t n, A* to) const {
    load_sinks(t, g, first, n, to, ld);
  }
  void load_sources(const Tokens& t, int64_t g, int64_t first, int64_t n, A* to) const {
    load_sources(t, g, first, n, to, ld);
  }
  // weight_i v_i
  void load_weighted_value(const Tokens& t, int64_t g, int64_t i, A weight, A* to) const {
    map_row(v_row(t, g, i), p.dim_v, to, ld_v, [weight](vec<A> x) { return weight * x; });
  }

  // Addresses of rows [first, last) of v.
  void list_values(const Tokens& t, int64_t g, int64_t first, int64_t last, const In** at) const {
    for (int64_t i = first; i < last; ++i) *at++ = v_row(t, g, i);
  }

  // row + eps where there are components, 0 in the padding.
  void add_eps(const A* row, A* to, int64_t width) const {
    for (int64_t x = 0; x < width; ++x) to[x] = x < p.dim ? row[x] + eps() : A{0};
  }
  // (row + eps) . (with + eps) = row . (with + eps) + this
  A eps_dot(const A* with_eps, int64_t width) const { return eps() * sum_row(with_eps, width) + outside(); }

 private:
  A* sink_row(const Tokens& t, int64_t g, int64_t kind) const {
    return static_cast<A*>(p.sinks) + ((t.batch * p.heads + head(g)) * 2 + kind) * p.tq + t.first;
  }
  A* source_row(const Tokens& t, int64_t g, int64_t kind) const {
    return static_cast<A*>(p.sources) + ((t.batch * p.heads + head(g)) * 3 + kind) * p.tk + t.first;
  }

  // Addresses of at most kChunk rows from `first` on, and of kRowsAhead more to fetch (the last where there are none).
  template <class Row>
  static void list_rows(const Tokens& t, int64_t first, int64_t n, const In** at, Row&& row) {
    const int64_t known = min_count(t.count - first, n + kRowsAhead);
    for (int64_t i = 0; i < known; ++i) at[i] = row(first + i);
    for (int64_t i = known; i < n + kRowsAhead; ++i) at[i] = at[known - 1];
  }

  template <class F, class Row>
  void load_features(const Tokens& t, int64_t first, int64_t n, F* to, int64_t width, Row&& row) const {
    const In* from[kChunk + kRowsAhead];
    for (int64_t i = 0; i < n; i += kChunk) {
      const int64_t count = min_count(kChunk, n - i);
      list_rows(t, first + i, count, from, row);
      sigmoid_rows(from, count, p.dim, to + i * width, width);
    }
  }
};

// fn(begin, end) of a segment's tokens; nothing if there are none.
template <class F> ATTN_INLINE void in_segment(int64_t count, int64_t length, int64_t segment, F&& fn) {
  const int64_t begin = segment * length, end = min_count(begin + length, count);
  if (begin < end) fn(begin, end);
}

}  // namespace scan
ATTN_NAMESPACE_END
