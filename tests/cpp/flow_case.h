// A whole flow attention call as random data: tensors with gaps between rows and tokens that nobody may read (both hold
// NaN), and its results and gradients by the definition in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <ostream>

#include "attn/flow.h"
#include "flow_oracle.h"
#include "test_tensor.h"

namespace attn {

struct FlowOptions {
  int64_t batch = 1, heads = 1, heads_kv = 1, tq = 40, tk = 40, dim = 6, dim_v = 6;
  FlowRules rules = {};
  std::vector<int32_t> cu = {};  // packed sequences
  double keep = 1;               // share of tokens that the masks keep; below 1 there are masks
  bool one_mask_only = false;    // of keys
  bool token_major = false;      // [B, T, H, D] in memory
  bool keep_state = true;

  friend std::ostream& operator<<(std::ostream& out, const FlowOptions& o) {
    out << "B" << o.batch << " H" << o.heads << "/" << o.heads_kv << " T" << o.tq << "/" << o.tk << " D" << o.dim << "/"
        << o.dim_v << (o.rules.causal ? " causal" : "") << (o.rules.head_softmax ? " over heads" : "")
        << (o.rules.source_norm ? " source_norm" : "") << " eps " << o.rules.eps << " outside " << o.rules.outside
        << " clamp " << o.rules.clamp << " kept " << o.keep << (o.token_major ? " token major" : "") << " cu";
    for (int32_t x : o.cu) out << " " << x;
    return out;
  }
};

template <class E> class FlowCase {
 public:
  using Stat = typename E::stat;

  FlowCase(const FlowOptions& options, uint32_t seed) : o(options) {
    std::mt19937 random(seed);
    q = tensor(o.heads, o.tq, o.dim);
    k = tensor(o.heads_kv, o.tk, o.dim);
    v = tensor(o.heads_kv, o.tk, o.dim_v);
    dout = tensor(o.heads, o.tq, o.dim_v);
    for (auto* x : {&q, &k, &v, &dout}) x->randomize(random);
    make_mask(random, o.tq, query_mask);
    if (o.rules.causal) key_mask = query_mask;
    else make_mask(random, o.tk, key_mask);
    if (o.one_mask_only) query_mask.clear();
    hide(q, query_mask);
    hide(dout, query_mask);
    hide(k, key_mask);
    hide(v, key_mask);
    out = tensor(o.heads, o.tq, o.dim_v);
    dq = tensor(o.heads, o.tq, o.dim);
    dk = tensor(o.heads, o.tk, o.dim);
    dv = tensor(o.heads, o.tk, o.dim_v);
    const auto unwritten = [](std::vector<Stat>& x, int64_t n) {
      x.assign(static_cast<size_t>(n), std::numeric_limits<Stat>::quiet_NaN());
    };
    unwritten(sinks, o.batch * o.heads * 2 * o.tq);
    unwritten(sources, o.batch * o.heads * 3 * o.tk);
    unwritten(sums, sequences() * o.heads * 4 * o.dim);
    unwritten(product, sequences() * o.heads * o.dim * o.dim_v);
    // Callers zero these two: of a sequence without tokens no kernel hears.
    log_mean.assign(static_cast<size_t>(sequences() * o.heads), 0);
    tokens.assign(static_cast<size_t>(sequences()), 0);
  }

  int64_t sequences() const { return o.cu.empty() ? o.batch : static_cast<int64_t>(o.cu.size()) - 1; }

  FlowParams params() {
    FlowParams p{};
    p.dtype = E::dtype;
    p.batch = o.batch, p.heads = o.heads, p.heads_kv = o.heads_kv;
    p.tq = o.tq, p.tk = o.tk, p.dim = o.dim, p.dim_v = o.dim_v;
    p.causal = o.rules.causal;
    p.eps = o.rules.eps, p.outside = o.rules.outside, p.clamp = o.rules.clamp;
    p.head_softmax = o.rules.head_softmax, p.source_norm = o.rules.source_norm;
    p.q = q.view(), p.k = k.view(), p.v = v.view(), p.out = out.view();
    p.query_mask = mask_view(query_mask, o.tq);
    p.key_mask = mask_view(key_mask, o.tk);
    p.cu = o.cu.empty() ? nullptr : o.cu.data();
    p.sequences = sequences();
    p.sinks = sinks.data(), p.sources = sources.data();
    if (!o.rules.causal || o.keep_state) p.sums = sums.data(), p.product = product.data();
    if (o.rules.causal && o.keep_state) p.log_mean = log_mean.data(), p.tokens = tokens.data();
    return p;
  }
  FlowBackwardParams backward() {
    FlowBackwardParams b{};
    b.forward = params();
    b.dout = dout.view(), b.dq = dq.view(), b.dk = dk.view(), b.dv = dv.view();
    return b;
  }

  // kProduct: relative error of an operand of a product; dropped_are_zero: does the kernel write the rows of dropped
  // tokens, or the caller?
  // feature_eps: relative error that features leave in dots, and weights have e to the power of.
  void check_forward(double product_eps, bool dropped_are_zero, double feature_eps = 0) {
    const double stat = feature_eps + (E::dtype == DType::f64 ? 1e-12 : 2e-5);
    for_sequences(
        [&](int64_t s, const std::vector<int64_t>& queries, const std::vector<int64_t>&, std::vector<FlowHead>& heads) {
          const auto [batch, first] = start(s);
          FlowSequence(o.rules, heads).forward();
          for (int64_t h = 0; h < o.heads; ++h) {
            SCOPED_TRACE(testing::Message() << "sequence " << s << " head " << h);
            const FlowHead& x = heads[static_cast<size_t>(h)];
            const int64_t row = batch * o.heads + h;
            const double of_weights = 2 * feature_eps * largest(x.conserved_source);
            compare_rows(out, x.out, x.size, batch, h, queries, product_eps + stat + of_weights);
            const bool both = x.q.rows > 0 && x.k.rows > 0;
            for (int64_t i = 0; both && i < x.q.rows; ++i) {
              near(sinks[row * 2 * o.tq + first + i], x.incoming[i], stat, "incoming", i);
              near(sinks[(row * 2 + 1) * o.tq + first + i], x.conserved_sink[i], stat, "conserved sink", i);
            }
            for (int64_t i = 0; both && i < x.k.rows; ++i) {
              near(sources[row * 3 * o.tk + first + i], x.outgoing[i], stat, "outgoing", i);
              near(sources[(row * 3 + 1) * o.tk + first + i], x.conserved_source[i], stat, "conserved source", i);
              near(sources[(row * 3 + 2) * o.tk + first + i], x.weight[i], 4 * stat + of_weights, "weight", i);
            }
            if (both || o.rules.causal) check_state(x, s, h, product_eps + 4 * stat + of_weights, stat);
          }
        });
    check_gaps(out, o.tq, query_mask, dropped_are_zero, "out");
  }

  // After the forward pass. In units of the largest gradient of a tensor: its elements are sums that cancel.
  void check_backward(double tolerance, bool dropped_are_zero, double feature_eps = 0) {
    for_sequences([&](int64_t s, const std::vector<int64_t>& queries, const std::vector<int64_t>& keys,
                      std::vector<FlowHead>& heads) {
      const auto batch = start(s).first;
      FlowSequence sequence(o.rules, heads);
      sequence.forward();
      sequence.backward();
      for (int64_t h = 0; h < o.heads; ++h) {
        SCOPED_TRACE(testing::Message() << "sequence " << s << " head " << h);
        const FlowHead& x = heads[static_cast<size_t>(h)];
        const auto compare = [&](TestTensor<E>& got, const Matrix& want, const std::vector<int64_t>& tokens_of,
                                 const char* name) {
          SCOPED_TRACE(name);
          Matrix size = want;
          double largest = 0.1;  // with few tokens terms cancel to nothing; each is about this large
          for (double w : want.x) largest = std::max(largest, std::abs(w));
          for (double& w : size.x) w = largest;
          compare_rows(got, want, size, batch, h, tokens_of,
                       tolerance + 4 * feature_eps * this->largest(x.conserved_source));
        };
        compare(dq, x.dq, queries, "dq");
        compare(dk, x.dk, keys, "dk");
        compare(dv, x.dv, keys, "dv");
      }
    });
    check_gaps(dq, o.tq, query_mask, dropped_are_zero, "dq");
    check_gaps(dk, o.tk, key_mask, dropped_are_zero, "dk");
    check_gaps(dv, o.tk, key_mask, dropped_are_zero, "dv");
  }

  FlowOptions o;
  TestTensor<E> q, k, v, out, dout, dq, dk, dv;
  std::vector<uint8_t> query_mask, key_mask;  // [B, T] with a byte between neighbours
  std::vector<Stat> sinks, sources, sums, product, log_mean, tokens;

 private:
  TestTensor<E> tensor(int64_t heads, int64_t t, int64_t d) const { return {o.batch, heads, t, d, o.token_major}; }

  void make_mask(std::mt19937& random, int64_t t, std::vector<uint8_t>& mask) const {
    if (o.keep >= 1) return;
    mask.assign(static_cast<size_t>(o.batch * t * 2), 77);
    for (size_t i = 0; i < mask.size(); i += 2) mask[i] = (random() % 1000) < o.keep * 1000;
  }
  static MaskView mask_view(const std::vector<uint8_t>& mask, int64_t t) {
    return {mask.empty() ? nullptr : mask.data(), 2 * t, 2};
  }
  int64_t end_of_tokens(int64_t t) const { return o.cu.empty() ? t : o.cu.back(); }
  bool kept(const std::vector<uint8_t>& mask, int64_t t, int64_t b, int64_t i) const {
    return i < end_of_tokens(t) && (mask.empty() || mask[static_cast<size_t>((b * t + i) * 2)]);
  }
  void hide(TestTensor<E>& x, const std::vector<uint8_t>& mask) const {
    for (int64_t b = 0; b < x.batch; ++b)
      for (int64_t t = 0; t < x.tokens; ++t)
        for (int64_t h = 0; h < x.heads && !kept(mask, x.tokens, b, t); ++h)
          for (int64_t d = 0; d < x.dim; ++d) x.at(b, h, t, d) = E::put(std::nan(""));
  }

  // Batch entry and first token.
  std::pair<int64_t, int64_t> start(int64_t s) const {
    return o.cu.empty() ? std::pair<int64_t, int64_t>{s, 0} : std::pair<int64_t, int64_t>{0, o.cu[s]};
  }
  std::vector<int64_t> tokens_of(int64_t s, const std::vector<uint8_t>& mask, int64_t t) const {
    const auto [batch, first] = start(s);
    std::vector<int64_t> found;
    for (int64_t i = first; i < (o.cu.empty() ? t : o.cu[s + 1]); ++i)
      if (kept(mask, t, batch, i)) found.push_back(i);
    return found;
  }
  Matrix rows(TestTensor<E>& x, int64_t b, int64_t h, const std::vector<int64_t>& at) const {
    Matrix m(static_cast<int64_t>(at.size()), x.dim);
    for (int64_t i = 0; i < m.rows; ++i)
      for (int64_t d = 0; d < x.dim; ++d) m[i][d] = x.get(b, h, at[static_cast<size_t>(i)], d);
    return m;
  }
  template <class F> void for_sequences(F&& f) {
    for (int64_t s = 0; s < sequences(); ++s) {
      const auto queries = tokens_of(s, query_mask, o.tq), keys = tokens_of(s, key_mask, o.tk);
      const int64_t batch = start(s).first;
      std::vector<FlowHead> heads(static_cast<size_t>(o.heads));
      for (int64_t h = 0; h < o.heads; ++h) {
        FlowHead& x = heads[static_cast<size_t>(h)];
        const int64_t kv = h / (o.heads / o.heads_kv);
        x.q = rows(q, batch, h, queries);
        x.k = rows(k, batch, kv, keys);
        x.v = rows(v, batch, kv, keys);
        x.dout = rows(dout, batch, h, queries);
      }
      f(s, queries, keys, heads);
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  static double largest(const std::vector<double>& x) {
    double most = 0;
    for (double e : x) most = std::max(most, std::abs(e));
    return most;
  }
  static void near(double got, double want, double tolerance, const char* name, int64_t i) {
    ASSERT_NEAR(got, want, tolerance * std::abs(want)) << name << " " << i;
  }
  // Rounding to E, and `tolerance` of `size`.
  void compare_rows(TestTensor<E>& got, const Matrix& want, const Matrix& size, int64_t b, int64_t h,
                    const std::vector<int64_t>& at, double tolerance) const {
    for (int64_t i = 0; i < want.rows; ++i) {
      for (int64_t d = 0; d < want.columns; ++d) {
        ASSERT_NEAR(got.get(b, h, at[static_cast<size_t>(i)], d), want[i][d],
                    E::eps / 2 * std::abs(want[i][d]) + tolerance * size[i][d] + 1e-7)
            << "kept row " << i << " feature " << d;
      }
    }
  }
  void check_state(const FlowHead& x, int64_t s, int64_t h, double product_tolerance, double stat) const {
    if (o.rules.causal && !o.keep_state) return;
    const int64_t g = s * o.heads + h, n = x.q.rows, m = x.k.rows;
    for (int64_t f = 0; f < o.dim; ++f) {
      double want[4] = {};
      for (int64_t j = 0; j < m; ++j) {
        const double t = o.rules.causal ? static_cast<double>(j + 1) : 1;
        want[0] += x.source[j][f];
        want[2] += x.source[j][f] * t / x.outgoing[j];
      }
      for (int64_t i = 0; i < n; ++i) {
        const double t = o.rules.causal ? static_cast<double>(i + 1) : 1;
        want[1] += x.sink[i][f];
        want[3] += x.sink[i][f] * t / x.incoming[i];
      }
      for (int64_t i = 0; i < 4; ++i) near(sums[(g * 4 + i) * o.dim + f], want[i], stat, "sum", i);
      for (int64_t d = 0; d < o.dim_v; ++d) {
        double sum = 0, size = 0;
        for (int64_t j = 0; j < m; ++j) {
          sum += x.source[j][f] * x.weight[j] * x.v[j][d];
          size += std::abs(x.source[j][f] * x.weight[j] * x.v[j][d]);
        }
        ASSERT_NEAR(product[(g * o.dim + f) * o.dim_v + d], sum, product_tolerance * size) << f << " " << d;
      }
    }
    if (!o.rules.causal) return;
    double mean = 0;
    for (int64_t j = 0; j < m; ++j)
      mean += std::exp(std::clamp(x.conserved_source[j], -o.rules.clamp, o.rules.clamp)) / static_cast<double>(m);
    ASSERT_NEAR(log_mean[g], m ? std::log(mean) : 0, 4 * stat);
    ASSERT_EQ(tokens[s], static_cast<Stat>(m));
  }

  // Rows of tokens that no sequence keeps, and what lies between rows.
  void check_gaps(TestTensor<E>& x, int64_t t, const std::vector<uint8_t>& mask, bool dropped_are_zero,
                  const char* name) const {
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t h = 0; h < o.heads; ++h) {
        for (int64_t i = 0; i < t; ++i) {
          for (int64_t d = 0; d < x.dim + x.gap; ++d) {
            const double got = x.get(b, h, i, d);
            if (d >= x.dim) ASSERT_TRUE(std::isnan(got)) << name << " row " << i << " was written past its end";
            else if (kept(mask, t, b, i)) ASSERT_FALSE(std::isnan(got)) << name << " row " << i;
            else if (dropped_are_zero) ASSERT_EQ(got, 0) << name << " row " << i;
            else ASSERT_TRUE(std::isnan(got)) << name << " row " << i << " was written, but is nobody's";
          }
        }
      }
    }
  }
};

// Calls around the edges of chunks, tiles and warps; every rule.
inline std::vector<FlowOptions> flow_calls(bool causal) {
  const double inf = std::numeric_limits<double>::infinity();
  std::vector<FlowOptions> all;
  const auto add = [&](FlowOptions o) {
    o.rules.causal = causal;
    if (causal) {
      o.tk = o.tq;
      if (o.rules.head_softmax || o.rules.source_norm) return;
    }
    all.push_back(o);
  };
  for (int64_t t : {1, 32, 63, 65, 257}) add({.tq = t, .tk = t == 32 ? 300 : t + 3});
  add({.batch = 2, .heads = 4, .heads_kv = 2, .tq = 70, .tk = 130, .dim = 64, .dim_v = 64, .token_major = true});
  add({.heads = 2, .heads_kv = 1, .tq = 90, .tk = 40, .dim = 96, .dim_v = 70, .rules = {.clamp = inf}});
  add({.tq = 20, .tk = 30, .dim = 256, .dim_v = 130, .rules = {.eps = 0.3, .clamp = 5}});
  add({.tq = 530, .tk = 10, .dim = 1, .dim_v = 3, .rules = {.outside = 1e-2, .clamp = inf}});
  add({.heads = 3, .heads_kv = 3, .tq = 50, .tk = 60, .dim = 33, .rules = {.head_softmax = true}});
  add({.heads = 2, .heads_kv = 2, .tq = 50, .tk = 300, .rules = {.source_norm = true, .clamp = 2}});
  add({.tq = 600, .tk = 600, .dim = 5, .dim_v = 7, .cu = {0, 10, 10, 300, 301, 590}});
  add({.heads = 2, .heads_kv = 1, .tq = 400, .tk = 400, .dim = 12, .cu = {0, 0, 260, 400}, .keep = 0.6});
  add({.batch = 2, .tq = 280, .tk = 530, .dim = 7, .dim_v = 9, .keep = 0.9});
  add({.tq = 40, .tk = 30, .keep = 0});  // nobody
  if (!causal) {
    add({.batch = 2, .heads = 2, .tq = 50, .tk = 70, .keep = 0.02, .one_mask_only = true});
    add({.tq = 30, .tk = 0});
    add({.tq = 0, .tk = 30});
    add({.heads = 2, .heads_kv = 2, .tq = 90, .tk = 90, .rules = {.head_softmax = true}, .cu = {0, 33, 80}});
  } else {
    add({.tq = 300, .dim = 20, .keep_state = false});
  }
  add({.tq = 330, .tk = 310, .dim = 9, .dim_v = 2, .rules = {.eps = 0.3, .clamp = 5}});
  return all;
}

// Steps over tokens [from, tq) of a causal case, on the case's state, which is that of the tokens before (from 0:
// none). step(params) runs a kernel.
template <class E, class Step> void step_on(FlowCase<E>& c, int64_t from, Step&& step) {
  using Stat = typename E::stat;
  const int64_t b = c.o.batch, h = c.o.heads, d = c.o.dim, dv = c.o.dim_v;
  struct State {
    std::vector<Stat> sums, product, log_mean, tokens;
    FlowStepParams::State view() { return {sums.data(), product.data(), log_mean.data(), tokens.data()}; }
  };
  const Stat nan = std::numeric_limits<Stat>::quiet_NaN();
  const auto fresh = [&] {
    const auto n = [&](int64_t size) { return std::vector<Stat>(static_cast<size_t>(size), nan); };
    return State{n(b * h * 4 * d), n(b * h * d * dv), n(b * h), n(b)};
  };
  State state{c.sums, c.product, c.log_mean, c.tokens};
  const FlowParams all = c.params();
  for (int64_t t = from; t < c.o.tq; ++t) {
    State after = fresh();
    FlowStepParams p{};
    p.dtype = E::dtype;
    p.batch = b, p.heads = h, p.heads_kv = c.o.heads_kv, p.dim = d, p.dim_v = dv;
    p.eps = c.o.rules.eps, p.clamp = c.o.rules.clamp;
    const auto token = [&](View4 x) {
      x.data = static_cast<typename E::type*>(x.data) + t * x.token;
      return x;
    };
    p.q = token(all.q), p.k = token(all.k), p.v = token(all.v), p.out = token(all.out);
    if (t > 0) p.before = state.view();
    p.after = after.view();
    step(p);
    state = std::move(after);
  }
  c.sums = state.sums, c.product = state.product, c.log_mean = state.log_mean, c.tokens = state.tokens;
}

}  // namespace attn
