// What the passes of flow attention share: the tokens that masks keep, rows of sinks and sources, statistics, and sums
// over blocks of rows.
#pragma once

#include "attn/flow.h"
#include "cpu/feature_rows.h"
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

// ---- blocks of padded rows -----------------------------------------------------------------------------------------

// out[i] = rows_i . w
template <class A>
__attribute__((noinline)) void dot_block_rows(const A* rows, int64_t ld, int64_t n, const A* w, A* out) {
  constexpr int L = Lanes<A>::n;
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const A* r = rows + i * ld;
    vec<A> s0{}, s1{}, s2{}, s3{};
    for (int64_t x = 0; x < ld; x += L) {
      const vec<A> y = load(w + x);
      s0 += load(r + x) * y;
      s1 += load(r + ld + x) * y;
      s2 += load(r + 2 * ld + x) * y;
      s3 += load(r + 3 * ld + x) * y;
    }
    out[i] = sum_lanes<A>(s0);
    out[i + 1] = sum_lanes<A>(s1);
    out[i + 2] = sum_lanes<A>(s2);
    out[i + 3] = sum_lanes<A>(s3);
  }
  for (; i < n; ++i) out[i] = dot_rows(rows + i * ld, w, ld);
}

// sum += sum_i weight_i rows_i; weight null = 1.
template <class A>
__attribute__((noinline)) void add_block_rows(const A* rows, int64_t ld, int64_t n, const A* weight, A* sum) {
  constexpr int L = Lanes<A>::n;
  for (int64_t x = 0; x < ld; x += 4 * L) {
    const int64_t left = (ld - x) / L;
    if (left >= 4) {
      vec<A> s0{}, s1{}, s2{}, s3{};
      for (int64_t i = 0; i < n; ++i) {
        const A* r = rows + i * ld + x;
        const vec<A> w = splat(weight ? weight[i] : A{1});
        s0 += w * load(r);
        s1 += w * load(r + L);
        s2 += w * load(r + 2 * L);
        s3 += w * load(r + 3 * L);
      }
      store(sum + x, load(sum + x) + s0);
      store(sum + x + L, load(sum + x + L) + s1);
      store(sum + x + 2 * L, load(sum + x + 2 * L) + s2);
      store(sum + x + 3 * L, load(sum + x + 3 * L) + s3);
    } else {
      for (int64_t v = 0; v < left; ++v) {
        vec<A> s{};
        for (int64_t i = 0; i < n; ++i) s += splat(weight ? weight[i] : A{1}) * load(rows + i * ld + x + v * L);
        store(sum + x + v * L, load(sum + x + v * L) + s);
      }
    }
  }
}

// Prefix sums and what they meet: for each row in turn, source += wk_i k_i and sink += wq_i q_i (weights null = 1),
// then
//   to_sink[i] = (q_i + eps) . (source + eps)     to_source[i] = (k_i + eps) . (sink + eps)
// over the first `dim` of `ld` components.
template <class A>
__attribute__((noinline)) void prefix_dots(const A* q, const A* k, int64_t ld, int64_t dim, int64_t n, const A* wq,
                                           const A* wk, A eps, A* sink, A* source, A* to_sink, A* to_source) {
  constexpr int L = Lanes<A>::n;
  const A padding = (ld - dim) * eps * eps;
  for (int64_t i = 0; i < n; ++i) {
    const A *qi = q + i * ld, *ki = k + i * ld;
    const vec<A> a = splat(wq ? wq[i] : A{1}), b = splat(wk ? wk[i] : A{1});
    vec<A> x{}, y{};
    for (int64_t f = 0; f < ld; f += L) {
      const vec<A> qf = load(qi + f), kf = load(ki + f);
      const vec<A> sources = load(source + f) + b * kf, sinks = load(sink + f) + a * qf;
      store(source + f, sources);
      store(sink + f, sinks);
      x += (qf + eps) * (sources + eps);
      y += (kf + eps) * (sinks + eps);
    }
    to_sink[i] = sum_lanes<A>(x) - padding;
    to_source[i] = sum_lanes<A>(y) - padding;
  }
}

// a . b over n elements.
template <class A, class X, class Y> ATTN_INLINE A dot_elements_as(const X* a, const Y* b, int64_t n) {
  constexpr int L = Lanes<A>::n;
  vec<A> sum{};
  int64_t i = 0;
  for (; i + L <= n; i += L) sum += load_as(a + i, A{}) * load_as(b + i, A{});
  if (i < n) sum += load_part<A>(a + i, n - i) * load_part<A>(b + i, n - i);
  return sum_lanes<A>(sum);
}

// to[0, dim) = d f (1 - f), the gradient through f = sigmoid(x).
template <class A, class Out> ATTN_INLINE void store_logistic_gradient(const A* f, A* d, int64_t ld, int64_t dim,
                                                                       Out* to) {
  for (int64_t x = 0; x < ld; x += Lanes<A>::n) {
    const vec<A> y = load(f + x);
    store(d + x, load(d + x) * (y * (1 - y)));
  }
  store_scaled_row(to, A{1}, d, dim);
}

// y[i] = exp(x[i] - top)
template <class A> inline void exp_block(const A* x, int64_t n, A top, A* y) {
  constexpr int L = Lanes<A>::n;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(y + i, exp_full(load(x + i) - top));
  if (i < n) {
    const vec<A> rest = exp_full(load_part<A>(x + i, n - i) - top);
    std::memcpy(y + i, &rest, (n - i) * sizeof(A));
  }
}

template <class A> inline void sigmoid_block(const A* x, int64_t n, A factor, A* y) {
  constexpr int L = Lanes<A>::n;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(y + i, sigmoidv(load(x + i) * factor));
  if (i < n) {
    const vec<A> rest = sigmoidv(load_part<A>(x + i, n - i) * factor);
    std::memcpy(y + i, &rest, (n - i) * sizeof(A));
  }
}

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

  // A block of statistics: kind 0, 1 of sinks, 0, 1, 2 of sources; from kept token i on.
  A* sink_stat(const Tokens& t, int64_t g, int64_t kind, int64_t i) const {
    return static_cast<A*>(p.sinks) + ((t.batch * p.heads + head(g)) * 2 + kind) * p.tq + t.first + i;
  }
  A* source_stat(const Tokens& t, int64_t g, int64_t kind, int64_t i) const {
    return static_cast<A*>(p.sources) + ((t.batch * p.heads + head(g)) * 3 + kind) * p.tk + t.first + i;
  }

  const In* q_row(const Tokens& t, int64_t g, int64_t i) const {
    return row_at<const In>(p.q, t.batch, head(g), t.at(i));
  }
  const In* k_row(const Tokens& t, int64_t g, int64_t i) const {
    return row_at<const In>(p.k, t.batch, head_kv(g), t.at(i));
  }
  const In* v_row(const Tokens& t, int64_t g, int64_t i) const {
    return row_at<const In>(p.v, t.batch, head_kv(g), t.at(i));
  }

  void load_sinks(const Tokens& t, int64_t g, int64_t first, int64_t n, A* to) const {
    for (int64_t i = 0; i < n; ++i) feature_row(FeatureMap::sigmoid, q_row(t, g, first + i), p.dim, to + i * ld, ld);
  }
  void load_sources(const Tokens& t, int64_t g, int64_t first, int64_t n, A* to) const {
    for (int64_t i = 0; i < n; ++i) feature_row(FeatureMap::sigmoid, k_row(t, g, first + i), p.dim, to + i * ld, ld);
  }
  // weight_i v_i
  void load_weighted_value(const Tokens& t, int64_t g, int64_t i, A weight, A* to) const {
    map_row(v_row(t, g, i), p.dim_v, to, ld_v, [weight](vec<A> x) { return weight * x; });
  }

  // row + eps where there are components, 0 in the padding.
  void add_eps(const A* row, A* to) const {
    for (int64_t x = 0; x < ld; ++x) to[x] = x < p.dim ? row[x] + eps() : A{0};
  }
  // (row + eps) . (with + eps) = row . (with + eps) + this
  A eps_dot(const A* with_eps) const { return eps() * sum_row(with_eps, ld) + outside(); }
};

// fn(begin, end) of a segment's tokens; nothing if there are none.
template <class F> ATTN_INLINE void in_segment(int64_t count, int64_t length, int64_t segment, F&& fn) {
  const int64_t begin = segment * length, end = min_count(begin + length, count);
  if (begin < end) fn(begin, end);
}

}  // namespace scan
ATTN_NAMESPACE_END
