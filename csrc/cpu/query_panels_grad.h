// Gradient of query_panels.h. A tile of queries meets a chunk of keys once: keys lie in lanes, so that weights P and dS
// come out with queries as rows, and three products follow: dv += P^T dout and dk += dS^T q over the queries, and
// dq += dS k over the keys. Keys of a chunk belong to one work item, which takes every query of every head that shares
// them; a dq that spans chunks is summed in float by each of a fixed number of ranges of chunks, added in order.
// Formulas: few_queries_grad.h.
#pragma once

#include "cpu/few_queries_grad.h"
#include "cpu/query_operands.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

constexpr int64_t kGradTokens = 64;  // keys of a chunk
constexpr int64_t kGradRows = 64;    // queries at a time: rows, scores and weights of a tile stay in L1 and L2

template <class In> class PanelBackward {
  using T = Operand<In>;
  using A = Acc<T>;
  static constexpr int W = kPanel<T>, L = kLanes<T>;

  const QueryPoolBackwardParams& b_;
  const QueryPoolParams& p_;
  const int64_t depth_, depth_v_;      // of a row, in operand elements
  const int64_t columns_, columns_v_;  // of a row, padded to whole vectors
  const int64_t units_;                // a unit is what one dq sums over: a sequence, or all of them for shared queries
  const Chunks chunks_;
  const int64_t ranges_;          // of the chunks of a unit: one work item each
  const Buffer<A> lse2_, delta_;  // of rows, [sequences][heads][queries]: softmax over keys
  const Buffer<A> factors_;       // relu_mean: 1 / kept keys of a sequence
  const Buffer<A> sums_;          // of dq, [units][heads][ranges][queries][columns]

  bool over_keys() const { return p_.activation == PoolActivation::softmax_keys; }
  bool over_queries() const { return p_.activation == PoolActivation::softmax_queries; }
  int64_t group() const { return p_.heads / p_.heads_kv; }
  int64_t sum_size() const { return p_.queries * columns_; }

  const In* q_base(int64_t sequence, int64_t head) const {
    return static_cast<const In*>(p_.q.data) + sequence * p_.q.batch + head * p_.q.head;  // batch = 0: shared
  }
  const In* dout_base(int64_t sequence, int64_t head) const {
    return static_cast<const In*>(b_.dout.data) + sequence * b_.dout.batch + head * b_.dout.head;
  }
  const In* key_base(const View4& v, const SequenceSpan& s, int64_t kv_head) const {
    return static_cast<const In*>(v.data) + s.batch * v.batch + kv_head * v.head + s.first * v.token;
  }
  A logit_factor() const {
    return static_cast<A>(p_.activation == PoolActivation::relu_mean ? p_.scale : p_.scale * kLog2e);
  }

  // Without dq nothing is summed over chunks, and each is an item.
  int64_t count_ranges() const {
    const int64_t most = b_.dq ? kQuerySums / (p_.heads_kv * (units_ > 0 ? units_ : 1)) : chunks_.count();
    return most > 1 ? most : 1;
  }

 public:
  explicit PanelBackward(const QueryPoolBackwardParams& b)
      : b_(b), p_(b.forward), depth_(depth_of<T>(p_.dim)), depth_v_(depth_of<T>(p_.dim_v)),
        columns_(round_up_lanes<T>(p_.dim)), columns_v_(round_up_lanes<T>(p_.dim_v)),
        units_(b.shared ? 1 : p_.sequences.count), chunks_(p_.sequences, kGradTokens), ranges_(count_ranges()),
        lse2_(over_keys() ? p_.sequences.count * p_.heads * p_.queries : 0),
        delta_(over_keys() ? p_.sequences.count * p_.heads * p_.queries : 0),
        factors_(p_.activation == PoolActivation::relu_mean ? p_.sequences.count : 0),
        sums_(b.dq ? units_ * p_.heads * ranges_ * sum_size() : 0) {}

  void run() const {
    if (over_keys()) parallel_items(p_.sequences.count * p_.heads, [this](int64_t i, int) { row_statistics(i); });
    if (p_.activation == PoolActivation::relu_mean) mean_factors<A>(p_, factors_);
    parallel_items(units_ * p_.heads_kv * ranges_, [this](int64_t i, int) {
      range_gradients(i / ranges_ / p_.heads_kv, i / ranges_ % p_.heads_kv, i % ranges_);
    });
    if (!b_.dq) return;
    parallel_items(units_ * p_.heads, [this](int64_t at, int) {
      A* sum = sums_ + at * ranges_ * sum_size();
      for (int64_t i = 1; i < ranges_; ++i) add_row<A>(sum, sum + i * sum_size(), sum_size());
      In* dq = static_cast<In*>(b_.dq) + at * p_.queries * p_.dim;
      for (int64_t m = 0; m < p_.queries; ++m) scale_row<In>(dq + m * p_.dim, A{1}, sum + m * columns_, p_.dim);
    });
  }

 private:
  // lse in base 2 and delta = dout . out of the rows of one head. A row without keys gets lse +inf, hence weights of
  // exactly 0.
  void row_statistics(int64_t item) const {
    A *lse2 = lse2_ + item * p_.queries, *delta = delta_ + item * p_.queries;
    const In* dout = dout_base(item / p_.heads, item % p_.heads);
    for (int64_t m = 0; m < p_.queries; ++m) {
      lse2[m] = kInf<A>;
      delta[m] = 0;
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

  struct Scratch {
    T *k, *v, *k_columns;                    // of a chunk: panels for scores, columns for dq
    T *q, *q_columns, *dout, *dout_columns;  // of a tile of queries
    A *s, *ds;                               // [queries][W] of a panel of keys
    T *weights, *slopes, *slope_rows;        // P and dS as operands: [queries][W], and dS as [queries][keys] for dq
    A *dk, *dv, *alpha;

    // A softmax over the queries keeps the scores of all of them.
    Scratch(Carve& c, const PanelBackward& f)
        : k(c.take<T>(kGradTokens * f.depth_)), v(c.take<T>(kGradTokens * f.depth_v_)),
          k_columns(c.take<T>(depth_of<T>(kGradTokens) * f.columns_)), q(c.take<T>(kGradRows * f.depth_)),
          q_columns(c.take<T>(depth_of<T>(kGradRows) * f.columns_)), dout(c.take<T>(kGradRows * f.depth_v_)),
          dout_columns(c.take<T>(depth_of<T>(kGradRows) * f.columns_v_)), s(c.take<A>(f.scored_rows() * W)),
          ds(c.take<A>(f.scored_rows() * W)), weights(c.take<T>(depth_of<T>(kGradRows) * W)),
          slopes(c.take<T>(depth_of<T>(kGradRows) * W)), slope_rows(c.take<T>(kGradRows * depth_of<T>(kGradTokens))),
          dk(c.take<A>(kGradTokens * f.columns_)), dv(c.take<A>(kGradTokens * f.columns_v_)), alpha(c.take<A>(W)) {}
  };

  int64_t scored_rows() const { return over_queries() ? p_.queries : kGradRows; }

  // The kept keys of a chunk, and what of them every tile of queries needs.
  struct Keys {
    TokenList tokens;
    PanelCut<T> cut;
    Operands<T> columns;
  };

  // A tile of queries. Only products need columns.
  struct Rows {
    int64_t first;
    int n;
    Operands<T> q, q_columns, dout, dout_columns;
  };

  void range_gradients(int64_t unit, int64_t kv_head, int64_t range) const {
    const Scratch z = carve<Scratch>(*this);
    fill_row(z.alpha, A{1}, W);
    const int64_t begin = b_.shared ? 0 : chunks_.first(unit),
                  end = b_.shared ? chunks_.count() : chunks_.first(unit + 1);
    const int64_t per_range = (end - begin + ranges_ - 1) / ranges_, from = begin + range * per_range;
    const int64_t head = kv_head * group();
    const auto sum = [&](int64_t h) {
      return b_.dq ? sums_ + ((unit * p_.heads + h) * ranges_ + range) * sum_size() : nullptr;
    };
    for (int64_t h = head; b_.dq && h < head + group(); ++h) clear_row(sum(h), sum_size());
    for (int64_t i = from; i < end && i < from + per_range; ++i) {
      const Chunk c = chunks_.at(i);
      clear_row(z.dk, kGradTokens * columns_);
      clear_row(z.dv, kGradTokens * columns_v_);
      const Keys keys = load_keys(c, kv_head, z);
      for (int64_t h = head; h < head + group(); ++h) {
        if (keys.tokens.n == 0) break;
        if (over_queries()) share_gradients(c.sequence, h, keys, z, sum(h));
        else head_gradients(c.sequence, h, keys, z, sum(h));
      }
      write_keys(c, kv_head, keys.tokens, z.dk, b_.dk, columns_, p_.dim);
      write_keys(c, kv_head, keys.tokens, z.dv, b_.dv, columns_v_, p_.dim_v);
    }
  }

  Keys load_keys(const Chunk& c, int64_t kv_head, const Scratch& z) const {
    Keys keys;
    const TokenList& tokens = keys.tokens;
    keys.tokens.fill(p_.mask, c.span, c.begin, c.end, kGradTokens);
    keys.cut = {tokens.n};
    const In *k = key_base(p_.k, c.span, kv_head), *v = key_base(p_.v, c.span, kv_head);
    for (int64_t i = 0; i < keys.cut.panels(); ++i) {
      const int width = keys.cut.vectors(i) * L;
      pack_panel<T, In>([&](int64_t r) { return k + tokens.at[i * W + r] * p_.k.token; }, keys.cut.rows(i), p_.dim,
                        z.k + i * W * depth_, width);
      pack_panel<T, In>([&](int64_t r) { return v + tokens.at[i * W + r] * p_.v.token; }, keys.cut.rows(i), p_.dim_v,
                        z.v + i * W * depth_v_, width);
    }
    if (b_.dq) keys.columns = as_columns<T, In>(k, p_.k.token, p_.dim, tokens, z.k_columns);
    return keys;
  }

  Rows load_rows(int64_t sequence, int64_t head, int64_t first, bool columns, const Scratch& z) const {
    const TokenList list = TokenList::run_of(first, p_.queries - first < kGradRows ? p_.queries - first : kGradRows);
    const In *q = q_base(sequence, head), *dout = dout_base(sequence, head);
    Rows r{first,
           list.n,
           as_rows<T, In>(q, p_.q.token, p_.dim, list, z.q),
           {},
           as_rows<T, In>(dout, b_.dout.token, p_.dim_v, list, z.dout),
           {}};
    if (columns && b_.dk.data) r.q_columns = as_columns<T, In>(q, p_.q.token, p_.dim, list, z.q_columns);
    if (columns && b_.dv.data) r.dout_columns = as_columns<T, In>(dout, b_.dout.token, p_.dim_v, list, z.dout_columns);
    return r;
  }

  // Calls f(tile) for every tile of queries of a head.
  template <class F> void for_tiles(int64_t sequence, int64_t head, bool columns, const Scratch& z, F&& f) const {
    for (int64_t first = 0; first < p_.queries; first += kGradRows) f(load_rows(sequence, head, first, columns, z));
  }

  // Calls f(number of vectors as a constant, panel) for every panel of keys.
  template <class F> static void for_panels(const Keys& keys, F&& f) {
    for (int64_t i = 0; i < keys.cut.panels(); ++i) {
      with_vectors(keys.cut.vectors(i), [&](auto nv) { f(nv, i); });
    }
  }

  // Softmax over keys, and relu: weights of a query depend on what the forward pass left of its row only.
  void head_gradients(int64_t sequence, int64_t head, const Keys& keys, const Scratch& z, A* sum) const {
    const int64_t at = (sequence * p_.heads + head) * p_.queries;
    const A scale = static_cast<A>(p_.scale), factor = over_keys() ? A{0} : factors_[sequence];
    for_tiles(sequence, head, true, z, [&](const Rows& rows) {
      for_panels(keys, [&](auto nv, int64_t panel) {
        scores<nv>(rows, panel, z, z.s, z.ds);
        weigh<nv>(z, panel, rows.n, z.s, z.ds, [&](int64_t m, int, vec<A>& s, vec<A>& ds) {
          if (over_keys()) {
            const int64_t row = at + rows.first + m;
            s = exp2v(s - lse2_[row]);
            ds = s * (ds - delta_[row]) * scale;
          } else {
            const auto positive = s > 0;
            ds = positive ? ds * (factor * scale) : vec<A>{};
            s = positive ? s * factor : vec<A>{};
          }
        });
        add_to_keys<nv>(keys, rows, panel, z, z.s);
      });
      if (sum) add_to_queries(keys, rows, 0, keys.tokens.n, z, sum);
    });
  }

  // Softmax over the queries: all queries of the head against one panel of keys.
  void share_gradients(int64_t sequence, int64_t head, const Keys& keys, const Scratch& z, A* sum) const {
    for_panels(keys, [&](auto nv, int64_t panel) {
      constexpr int NV = nv, width = NV * L;
      for_tiles(sequence, head, false, z, [&](const Rows& rows) {
        scores<NV>(rows, panel, z, z.s + rows.first * width, z.ds + rows.first * width);
      });
      vec<A> top[NV], total[NV], mean[NV];
      for (int x = 0; x < NV; ++x) {
        top[x] = load(z.s + x * L);
        total[x] = mean[x] = vec<A>{};
        for (int64_t m = 1; m < p_.queries; ++m) top[x] = vmax(load(z.s + m * width + x * L), top[x]);
        for (int64_t m = 0; m < p_.queries; ++m) {
          A* s = z.s + m * width + x * L;
          const vec<A> e = exp2v(load(s) - top[x]);
          store(s, e);
          total[x] += e;
          mean[x] += e * load(z.ds + m * width + x * L);
        }
        mean[x] /= total[x];
      }
      for_tiles(sequence, head, true, z, [&](const Rows& rows) {
        A *s = z.s + rows.first * width, *ds = z.ds + rows.first * width;
        weigh<NV>(z, panel, rows.n, s, ds, [&](int64_t, int x, vec<A>& w, vec<A>& g) {
          w /= total[x];
          g = w * (g - mean[x]) * static_cast<A>(p_.scale);
        });
        add_to_keys<NV>(keys, rows, panel, z, s);
        if (sum) add_to_queries(keys, rows, panel * W, keys.cut.rows(panel), z, sum);
      });
    });
  }

  // Logits s and dP ds of a tile of queries against one panel of keys.
  template <int NV> void scores(const Rows& rows, int64_t panel, const Scratch& z, A* s, A* ds) const {
    vec<A> top[NV] = {};
    dot_panel<T, NV>(rows.q.data, rows.q.ld, rows.n, depth_, z.k + panel * W * depth_, logit_factor(), s, top);
    product_panel<T, NV>(rows.dout.data, rows.dout.ld, rows.n, depth_v_, z.v + panel * W * depth_v_, ds);
  }

  // From logits and dP to P and dS by f(query, vector, s, ds), stored as operands: P where add_to_keys looks for it,
  // dS twice.
  template <int NV, class F>
  void weigh(const Scratch& z, int64_t panel, int64_t n, A* s, const A* ds, F&& f) const {
    for (int64_t m = 0; m < n; m += kPair<T>) {
      for (int x = 0; x < NV; ++x) {
        vec<A> w[kPair<T>] = {}, g[kPair<T>] = {};
        for (int r = 0; r < kPair<T> && m + r < n; ++r) {
          w[r] = load(s + ((m + r) * NV + x) * L);
          g[r] = load(ds + ((m + r) * NV + x) * L);
          f(m + r, x, w[r], g[r]);
        }
        if constexpr (kPairRows<T>) {
          store(z.weights + (m / 2 * NV + x) * L, make_pairs(w[0], w[1]));
          store(z.slopes + (m / 2 * NV + x) * L, make_pairs(g[0], g[1]));
          In* row = slope_row(z, m) + panel * W + x * L;
          store_as(row, g[0]);
          if (m + 1 < n) store_as(row + kGradTokens, g[1]);
        } else {
          store(s + (m * NV + x) * L, w[0]);
          store(z.slope_rows + m * kGradTokens + panel * W + x * L, g[0]);
        }
      }
    }
  }

  static In* slope_row(const Scratch& z, int64_t m) { return reinterpret_cast<In*>(z.slope_rows) + m * kGradTokens; }

  // dk += dS^T q and dv += P^T dout, for one panel of keys.
  template <int NV> void add_to_keys(const Keys& keys, const Rows& rows, int64_t panel, const Scratch& z, A* s) const {
    const int64_t depth = depth_of<T>(rows.n), lanes = keys.cut.rows(panel);
    const auto add = [&](const T* p, int64_t width, const Operands<T>& of, int64_t columns, A* to) {
      acc_panel<T>(p, width, lanes, depth, of.data, of.ld, columns, z.alpha, to + panel * W * columns, columns);
    };
    const T *weights, *slopes;
    int64_t width = kGradTokens;
    if constexpr (kPairRows<T>) {
      weights = z.weights;
      slopes = z.slopes;
      width = NV * L;
    } else {
      weights = s;
      slopes = z.slope_rows + panel * W;
    }
    if (b_.dk.data) add(slopes, width, rows.q_columns, columns_, z.dk);
    if (b_.dv.data) add(weights, NV * L, rows.dout_columns, columns_v_, z.dv);
  }

  // dq += dS k over the kept keys [begin, begin + n) of the chunk; begin is a panel's.
  void add_to_queries(const Keys& keys, const Rows& rows, int64_t begin, int64_t n, const Scratch& z, A* sum) const {
    if constexpr (kPairRows<T>) {
      // The partner of a last odd key is no key: its k is 0, its dS may be anything.
      for (int64_t m = 0; n % 2 && m < rows.n; ++m) slope_row(z, m)[begin + n] = In{};
    }
    add_rows<T>(z.slope_rows + begin / kPair<T>, kGradTokens / kPair<T>, rows.n, depth_of<T>(n),
                keys.columns.data + begin / kPair<T> * keys.columns.ld, keys.columns.ld, columns_,
                sum + rows.first * columns_, columns_);
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
};

template <class In> inline void panel_backward(const QueryPoolBackwardParams& b) { PanelBackward<In>(b).run(); }

}  // namespace pool
ATTN_NAMESPACE_END
