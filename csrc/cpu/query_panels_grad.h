// Gradient of query_panels.h, in the accumulation type throughout. First keys and values: keys in lanes, every query of
// every head that shares them; then queries: queries in lanes, every key. Scores are computed anew in each (seven
// products instead of five) so that every sum has one owner and one order. Formulas: few_queries_grad.h.
#pragma once

#include "cpu/few_queries_grad.h"
#include "cpu/query_panels.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

constexpr int64_t kGradTokens = 64;  // keys of a work item
constexpr int64_t kGradRows = 64;    // queries at a time

template <class In> class PanelBackward {
  using A = Sum<In>;
  static constexpr int W = kPanel<A>, L = kLanes<A>;

  const QueryPoolBackwardParams& b_;
  const QueryPoolParams& p_;
  const PanelCut<A> cut_;
  const int64_t dim_, dim_v_;  // padded to whole vectors
  const Chunks chunks_;
  const Buffer<A> lse2_, delta_;          // of rows, [sequences][heads][padded rows]: softmax over keys
  const Buffer<A> key_lse2_, key_delta_;  // of keys, [heads][B L]: softmax over queries
  const Buffer<A> factors_;               // relu_mean: 1 / kept keys of a sequence

  bool over_keys() const { return p_.activation == PoolActivation::softmax_keys; }
  bool over_queries() const { return p_.activation == PoolActivation::softmax_queries; }
  bool shared() const { return p_.q.batch == 0; }
  int64_t group() const { return p_.heads / p_.heads_kv; }

  const In* q_base(int64_t sequence, int64_t head) const {
    return static_cast<const In*>(p_.q.data) + (shared() ? 0 : sequence) * p_.q.batch + head * p_.q.head;
  }
  const In* dout_base(int64_t sequence, int64_t head) const {
    return static_cast<const In*>(b_.dout.data) + sequence * b_.dout.batch + head * b_.dout.head;
  }
  const In* key_base(const View4& v, const SequenceSpan& s, int64_t kv_head) const {
    return static_cast<const In*>(v.data) + s.batch * v.batch + kv_head * v.head + s.first * v.token;
  }
  int64_t row_at(int64_t sequence, int64_t head) const { return (sequence * p_.heads + head) * cut_.padded_rows(); }
  int64_t key_at(const SequenceSpan& s, int64_t head, int64_t position) const {
    return head * p_.sequences.batch * p_.sequences.tokens + s.batch * p_.sequences.tokens + s.first + position;
  }
  A logit_factor() const {
    return static_cast<A>(p_.activation == PoolActivation::relu_mean ? p_.scale : p_.scale * kLog2e);
  }

 public:
  explicit PanelBackward(const QueryPoolBackwardParams& b)
      : b_(b), p_(b.forward), cut_{p_.queries}, dim_(padded<A>(p_.dim)), dim_v_(padded<A>(p_.dim_v)),
        chunks_(p_.sequences, kGradTokens), lse2_(over_keys() ? p_.sequences.count * p_.heads * cut_.padded_rows() : 0),
        delta_(over_keys() ? p_.sequences.count * p_.heads * cut_.padded_rows() : 0),
        key_lse2_(over_queries() ? p_.heads * p_.sequences.batch * p_.sequences.tokens : 0),
        key_delta_(over_queries() ? p_.heads * p_.sequences.batch * p_.sequences.tokens : 0),
        factors_(p_.activation == PoolActivation::relu_mean ? p_.sequences.count : 0) {}

  void run() const {
    if (over_keys()) parallel_items(p_.sequences.count * p_.heads, [this](int64_t i, int) { row_statistics(i); });
    if (p_.activation == PoolActivation::relu_mean) mean_factors<A>(p_, factors_);
    if (b_.dk.data || b_.dv.data || over_queries()) {
      parallel_items(chunks_.count() * p_.heads_kv,
                     [this](int64_t i, int) { key_gradients(chunks_.at(i / p_.heads_kv), i % p_.heads_kv); });
    }
    if (b_.dq) query_gradients();
  }

 private:
  // lse in base 2 and delta = dout . out of the rows of one head. A row without keys, and padding, gets lse +inf, hence
  // weights of exactly 0.
  void row_statistics(int64_t item) const {
    A *lse2 = lse2_ + item * cut_.padded_rows(), *delta = delta_ + item * cut_.padded_rows();
    const In* dout = dout_base(item / p_.heads, item % p_.heads);
    for (int64_t m = 0; m < cut_.padded_rows(); ++m) {
      lse2[m] = kInf<A>;
      delta[m] = 0;
      if (m >= p_.queries) continue;
      const A lse = static_cast<const A*>(p_.lse)[item * p_.queries + m];
      if (lse == -kInf<A>) continue;
      lse2[m] = lse * static_cast<A>(kLog2e);
      const In *g = dout + m * b_.dout.token,
               *out = static_cast<const In*>(p_.out) + (item * p_.queries + m) * p_.dim_v;
      vec<A> sum{};
      for_lanes<A>(p_.dim_v, [&](int64_t i, auto w) { sum += get(g + i, w) * get(out + i, w); });
      delta[m] = sum_lanes<A>(sum);
    }
  }

  // ---- keys and values ------------------------------------------------------------------------------------------

  struct KeyScratch {
    A *k, *v, *q, *dout, *s, *ds, *dk, *dv, *alpha;

    // A softmax over the queries keeps the scores of all of them.
    KeyScratch(Carve& c, const PanelBackward& f)
        : k(c.take<A>(kGradTokens * f.dim_)), v(c.take<A>(kGradTokens * f.dim_v_)), q(c.take<A>(kGradRows * f.dim_)),
          dout(c.take<A>(kGradRows * f.dim_v_)), s(c.take<A>(f.scored_rows() * W)), ds(c.take<A>(f.scored_rows() * W)),
          dk(c.take<A>(kGradTokens * f.dim_)), dv(c.take<A>(kGradTokens * f.dim_v_)), alpha(c.take<A>(W)) {}
  };

  int64_t scored_rows() const { return over_queries() ? p_.queries : kGradRows; }

  void load_rows(const In* base, int64_t stride, int64_t dim, int64_t first, int64_t n, A* to) const {
    for (int64_t r = 0; r < n; ++r)
      convert_row(base + (first + r) * stride, dim, to + r * padded<A>(dim), padded<A>(dim));
  }

  void key_gradients(const Chunk& c, int64_t kv_head) const {
    const KeyScratch z = carve<KeyScratch>(*this);
    TokenList tokens;
    tokens.fill(p_.mask, c.span, c.begin, c.end, kGradTokens);
    const PanelCut<A> keys{tokens.n};
    fill_row(z.alpha, A{1}, W);
    clear_row(z.dk, kGradTokens * dim_);
    clear_row(z.dv, kGradTokens * dim_v_);
    const In *k = key_base(p_.k, c.span, kv_head), *v = key_base(p_.v, c.span, kv_head);
    for (int64_t i = 0; i < keys.panels(); ++i) {
      const int width = keys.vectors(i) * L;
      pack_panel<A, In>([&](int64_t r) { return k + tokens.at[i * W + r] * p_.k.token; }, keys.rows(i), p_.dim,
                        z.k + i * W * dim_, width);
      pack_panel<A, In>([&](int64_t r) { return v + tokens.at[i * W + r] * p_.v.token; }, keys.rows(i), p_.dim_v,
                        z.v + i * W * dim_v_, width);
    }
    for (int64_t head = kv_head * group(); head < (kv_head + 1) * group(); ++head) {
      if (over_queries()) {
        for (int64_t i = 0; i < keys.panels(); ++i) {
          with_vectors(keys.vectors(i),
                       [&](auto nv) { share_gradient<decltype(nv)::value>(c, head, i, keys, tokens, z); });
        }
        continue;
      }
      for (int64_t first = 0; first < p_.queries; first += kGradRows) {
        const int64_t n = p_.queries - first < kGradRows ? p_.queries - first : kGradRows;
        load_rows(q_base(c.sequence, head), p_.q.token, p_.dim, first, n, z.q);
        load_rows(dout_base(c.sequence, head), b_.dout.token, p_.dim_v, first, n, z.dout);
        for (int64_t i = 0; i < keys.panels(); ++i) {
          with_vectors(keys.vectors(i), [&](auto nv) {
            constexpr int NV = decltype(nv)::value;
            scores<NV>(z, i, n, z.s, z.ds);
            const int64_t at = row_at(c.sequence, head) + first;
            for (int64_t m = 0; m < n; ++m) {
              for (int x = 0; x < NV; ++x) {
                row_gradient(z.s + (m * NV + x) * L, z.ds + (m * NV + x) * L, at + m, c.sequence);
              }
            }
            add_products<NV>(z, i, keys.rows(i), n, z.s, z.ds);
          });
        }
      }
    }
    write_keys(c, kv_head, tokens, z.dk, b_.dk, dim_, p_.dim);
    write_keys(c, kv_head, tokens, z.dv, b_.dv, dim_v_, p_.dim_v);
  }

  // Logits s and dP ds of n queries (z.q, z.dout) against one panel of keys.
  template <int NV> void scores(const KeyScratch& z, int64_t panel, int64_t n, A* s, A* ds) const {
    vec<A> top[NV] = {};
    dot_panel<A, NV>(z.q, dim_, n, p_.dim, z.k + panel * W * dim_, logit_factor(), s, top);
    dot_panel<A, NV>(z.dout, dim_v_, n, p_.dim_v, z.v + panel * W * dim_v_, A{1}, ds, top);
  }

  // From logit and dP to weight and dS for one vector of keys; `at` is the row's place in lse2_ and delta_.
  void row_gradient(A* s, A* ds, int64_t at, int64_t sequence) const {
    const vec<A> x = load(s), g = load(ds), zero{};
    if (over_keys()) {
      const vec<A> w = exp2v(x - lse2_[at]);
      store(s, w);
      store(ds, w * (g - delta_[at]) * static_cast<A>(p_.scale));
    } else {
      store(s, x > 0 ? x * factors_[sequence] : zero);
      store(ds, x > 0 ? g * (factors_[sequence] * static_cast<A>(p_.scale)) : zero);
    }
  }

  template <int NV>
  void add_products(const KeyScratch& z, int64_t panel, int rows, int64_t n, const A* s, const A* ds) const {
    acc_panel<A>(ds, NV * L, rows, n, z.q, dim_, dim_, z.alpha, z.dk + panel * W * dim_, dim_);
    acc_panel<A>(s, NV * L, rows, n, z.dout, dim_v_, dim_v_, z.alpha, z.dv + panel * W * dim_v_, dim_v_);
  }

  // Softmax over the queries: all queries of one head against one panel of keys, whose lse and delta are kept for dq.
  template <int NV>
  void share_gradient(const Chunk& c, int64_t head, int64_t panel, const PanelCut<A>& keys, const TokenList& tokens,
                      const KeyScratch& z) const {
    constexpr int width = NV * L;
    const auto for_tiles = [&](auto&& f) {
      for (int64_t first = 0; first < p_.queries; first += kGradRows) {
        const int64_t n = p_.queries - first < kGradRows ? p_.queries - first : kGradRows;
        load_rows(q_base(c.sequence, head), p_.q.token, p_.dim, first, n, z.q);
        load_rows(dout_base(c.sequence, head), b_.dout.token, p_.dim_v, first, n, z.dout);
        f(z.s + first * width, z.ds + first * width, n);
      }
    };
    for_tiles([&](A* s, A* ds, int64_t n) { scores<NV>(z, panel, n, s, ds); });
    for (int x = 0; x < NV; ++x) {
      vec<A> top = load(z.s + x * L), sum{}, mean{};
      for (int64_t m = 1; m < p_.queries; ++m) top = vmax(load(z.s + m * width + x * L), top);
      for (int64_t m = 0; m < p_.queries; ++m) {
        A* s = z.s + m * width + x * L;
        const vec<A> e = exp2v(load(s) - top);
        store(s, e);
        sum += e;
        mean += e * load(z.ds + m * width + x * L);
      }
      mean /= sum;
      for (int64_t m = 0; m < p_.queries; ++m) {
        A *s = z.s + m * width + x * L, *ds = z.ds + m * width + x * L;
        const vec<A> w = load(s) / sum;
        store(s, w);
        store(ds, w * (load(ds) - mean) * static_cast<A>(p_.scale));
      }
      for (int lane = 0; lane < L && x * L + lane < keys.rows(panel); ++lane) {
        const int64_t at = key_at(c.span, head, tokens.at[panel * W + x * L + lane]);
        key_lse2_[at] = top[lane] + std::log2(sum[lane]);
        key_delta_[at] = mean[lane];
      }
    }
    for_tiles([&](A* s, A* ds, int64_t n) { add_products<NV>(z, panel, keys.rows(panel), n, s, ds); });
  }

  void write_keys(const Chunk& c, int64_t kv_head, const TokenList& tokens, const A* from, const View4& to, int64_t ld,
                  int64_t dim) const {
    if (!to.data) return;
    In* base = key_rows_of<In>(to, c.span) + kv_head * to.head;
    int next = 0;
    for (int64_t t = c.begin; t < c.end; ++t) {
      if (next < tokens.n && tokens.at[next] == t) scale_row<In>(base + t * to.token, A{1}, from + next++ * ld, dim);
      else clear_row(base + t * to.token, dim);
    }
  }

  // ---- queries --------------------------------------------------------------------------------------------------

  struct QueryScratch {
    A *q, *dout, *k, *v, *s, *ds, *alpha;

    QueryScratch(Carve& c, const PanelBackward& f)
        : q(c.take<A>(kTilePanels * W * f.dim_)), dout(c.take<A>(kTilePanels * W * f.dim_v_)),
          k(c.take<A>(kGradTokens * f.dim_)), v(c.take<A>(kGradTokens * f.dim_v_)), s(c.take<A>(kGradTokens * W)),
          ds(c.take<A>(kGradTokens * W)), alpha(c.take<A>(W)) {}
  };

  // A unit is what one dq sums over: a sequence, or all of them for shared queries. Its chunks are cut into ranges for
  // parallelism, their sums are added in order.
  void query_gradients() const {
    const int64_t units = b_.shared ? 1 : p_.sequences.count;
    const int64_t tiles = (cut_.panels() + kTilePanels - 1) / kTilePanels;
    const int64_t wanted = kQuerySums / (tiles * p_.heads * (units > 0 ? units : 1));
    const int64_t ranges = wanted > 1 ? wanted : 1;
    const int64_t rows = cut_.padded_rows(), size = rows * dim_;
    const Buffer<A> sums(ranges * units * p_.heads * size);  // [units][heads][ranges][rows][dim]
    parallel_items(units * p_.heads * tiles * ranges, [&](int64_t item, int) {
      const int64_t range = item % ranges, tile = item / ranges % tiles, at = item / ranges / tiles;
      const int64_t unit = at / p_.heads, head = at % p_.heads;
      const int64_t begin = b_.shared ? 0 : chunks_.first(unit);
      const int64_t end = b_.shared ? chunks_.count() : chunks_.first(unit + 1),
                    per_range = (end - begin + ranges - 1) / ranges;
      const int64_t stop = begin + (range + 1) * per_range;
      A* sum = sums + (at * ranges + range) * size + tile * kTilePanels * W * dim_;
      query_range(head, tile * kTilePanels, begin + range * per_range, stop < end ? stop : end, sum);
    });
    parallel_items(units * p_.heads, [&](int64_t at, int) {
      A* sum = sums + at * ranges * size;
      for (int64_t i = 1; i < ranges; ++i) add_row<A>(sum, sum + i * size, size);
      In* dq = static_cast<In*>(b_.dq) + at * p_.queries * p_.dim;
      for (int64_t m = 0; m < p_.queries; ++m) scale_row<In>(dq + m * p_.dim, A{1}, sum + m * dim_, p_.dim);
    });
  }

  // dq of a tile of panels over chunks [begin, end), into sum [rows][dim].
  void query_range(int64_t head, int64_t first, int64_t begin, int64_t end, A* sum) const {
    const QueryScratch z = carve<QueryScratch>(*this);
    const int64_t last = first + kTilePanels < cut_.panels() ? first + kTilePanels : cut_.panels();
    clear_row(sum, (last - first) * W * dim_);
    fill_row(z.alpha, A{1}, W);
    int64_t sequence = -1;
    for (int64_t index = begin; index < end; ++index) {
      const Chunk c = chunks_.at(index);
      if (c.sequence != sequence) {
        for (int64_t i = first; i < last; ++i) {
          if (sequence < 0 || !shared()) {
            pack_queries<A, In>(q_base(c.sequence, head), p_.q.token, p_.dim, cut_, i, z.q + (i - first) * W * dim_);
          }
          pack_queries<A, In>(dout_base(c.sequence, head), b_.dout.token, p_.dim_v, cut_, i,
                              z.dout + (i - first) * W * dim_v_);
        }
        sequence = c.sequence;
      }
      TokenList tokens;
      tokens.fill(p_.mask, c.span, c.begin, c.end, kGradTokens);
      if (tokens.n == 0) continue;
      const int64_t kv_head = head / group();
      const Operands<A> keys = as_columns<A, In>(key_base(p_.k, c.span, kv_head), p_.k.token, p_.dim, tokens, z.k);
      const Operands<A> values = as_rows<A, In>(key_base(p_.v, c.span, kv_head), p_.v.token, p_.dim_v, tokens, z.v);
      for (int64_t i = first; i < last; ++i) {
        with_vectors(cut_.vectors(i), [&](auto nv) {
          constexpr int NV = decltype(nv)::value;
          vec<A> top[NV] = {};
          dot_panel<A, NV>(keys.data, keys.ld, tokens.n, p_.dim, z.q + (i - first) * W * dim_, logit_factor(), z.s,
                           top);
          dot_panel<A, NV>(values.data, values.ld, tokens.n, p_.dim_v, z.dout + (i - first) * W * dim_v_, A{1}, z.ds,
                           top);
          for (int j = 0; j < tokens.n; ++j) {
            for (int x = 0; x < NV; ++x) {
              const int64_t at = (j * NV + x) * L;
              lane_gradient(z.s + at, z.ds + at, row_at(c.sequence, head) + i * W + x * L,
                            key_at(c.span, head, tokens.at[j]), c.sequence);
            }
          }
          acc_panel<A>(z.ds, NV * L, cut_.rows(i), tokens.n, keys.data, keys.ld, dim_, z.alpha,
                       sum + (i - first) * W * dim_, dim_);
        });
      }
    }
  }

  // From logit and dP (in ds) to dS for one vector of queries at `row` against one key.
  void lane_gradient(const A* s, A* ds, int64_t row, int64_t key, int64_t sequence) const {
    const vec<A> x = load(s), g = load(ds), zero{};
    const A scale = static_cast<A>(p_.scale);
    if (over_keys()) store(ds, exp2v(x - load(lse2_ + row)) * (g - load(delta_ + row)) * scale);
    else if (over_queries()) store(ds, exp2v(x - key_lse2_[key]) * (g - key_delta_[key]) * scale);
    else store(ds, x > 0 ? g * (factors_[sequence] * scale) : zero);
  }
};

template <class In> inline void panel_backward(const QueryPoolBackwardParams& b) { PanelBackward<In>(b).run(); }

}  // namespace pool
ATTN_NAMESPACE_END
