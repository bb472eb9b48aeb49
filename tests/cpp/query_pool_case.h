// A random call of query pooling, and its result and gradients by the formulas in double.
#pragma once

#include <gtest/gtest.h>

#include <limits>

#include "attn/pool.h"
#include "elements.h"

namespace attn {

struct QueryPoolOptions {
  PoolActivation activation = PoolActivation::softmax_keys;
  std::vector<int64_t> lengths = {40};  // of the sequences
  bool packed = false;                  // otherwise all sequences have the first length
  int64_t spare = 0;                    // packed: tokens past the last sequence
  int64_t heads = 1, heads_kv = 1, queries = 1, dim = 8, dim_v = 8;
  bool shared = false;
  int64_t keep_of_10 = 10;  // keys that the mask keeps, of ten; 10: no mask
  double scale = 0.5;
  int64_t gap = 2;  // elements between rows
};

// A [batch, head, token, dim] tensor with gaps between its rows. Everything starts as NaN.
template <class E> struct PoolTensor {
  int64_t batch = 0, heads = 0, tokens = 0, dim = 0, pitch = 0;
  std::vector<typename E::type> data;

  PoolTensor() = default;
  PoolTensor(int64_t b, int64_t h, int64_t t, int64_t d, int64_t gap)
      : batch(b), heads(h), tokens(t), dim(d), pitch(d + gap), data(b * h * t * (d + gap), E::put(std::nan(""))) {}
  View4 view() { return {data.data(), heads * tokens * pitch, tokens * pitch, pitch}; }
  typename E::type& at(int64_t b, int64_t h, int64_t t, int64_t d) {
    return data[((b * heads + h) * tokens + t) * pitch + d];
  }
  double get(int64_t b, int64_t h, int64_t t, int64_t d) const {
    return E::get(data[((b * heads + h) * tokens + t) * pitch + d]);
  }
};

template <class E> struct QueryPoolCase {
  using Values = std::vector<double>;
  QueryPoolOptions o;
  int64_t batch, tokens, count;
  PoolTensor<E> q, k, v, dout, out, dq, dk, dv;
  std::vector<typename E::stat> lse;
  std::vector<int32_t> cu;
  std::vector<uint8_t> mask;
  bool want[3] = {true, true, true};

  QueryPoolCase(const QueryPoolOptions& options, uint32_t seed) : o(options) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    count = static_cast<int64_t>(o.lengths.size());
    batch = o.packed ? 1 : count;
    cu.push_back(0);
    for (int64_t n : o.lengths) cu.push_back(cu.back() + static_cast<int32_t>(n));
    tokens = o.packed ? cu.back() + o.spare : o.lengths[0];
    mask.resize(batch * tokens);
    for (auto& keep : mask) keep = static_cast<int64_t>(random() % 10) < o.keep_of_10;
    auto fill = [&](PoolTensor<E>& x, auto&& keep) {
      for (int64_t b = 0; b < x.batch; ++b) {
        for (int64_t h = 0; h < x.heads; ++h) {
          for (int64_t t = 0; t < x.tokens; ++t) {
            for (int64_t d = 0; d < x.dim && keep(b, t); ++d) x.at(b, h, t, d) = E::put(normal(random));
          }
        }
      }
    };
    const auto all = [](int64_t, int64_t) { return true; };
    // Keys that nobody may read stay NaN.
    const auto kept = [&](int64_t b, int64_t t) { return mask[b * tokens + t] && (!o.packed || t < cu.back()); };
    fill(q = PoolTensor<E>(o.shared ? 1 : count, o.heads, o.queries, o.dim, o.gap), all);
    fill(k = PoolTensor<E>(batch, o.heads_kv, tokens, o.dim, o.gap), kept);
    fill(v = PoolTensor<E>(batch, o.heads_kv, tokens, o.dim_v, o.gap), kept);
    fill(dout = PoolTensor<E>(count, o.heads, o.queries, o.dim_v, o.gap), all);
    out = PoolTensor<E>(count, o.heads, o.queries, o.dim_v, 0);
    dq = PoolTensor<E>(q.batch, o.heads, o.queries, o.dim, 0);
    dk = PoolTensor<E>(batch, o.heads_kv, tokens, o.dim, 0);
    dv = PoolTensor<E>(batch, o.heads_kv, tokens, o.dim_v, 0);
    lse.resize(count * o.heads * o.queries, std::numeric_limits<typename E::stat>::quiet_NaN());
  }

  QueryPoolParams forward() {
    QueryPoolParams p{};
    p.dtype = E::dtype;
    p.activation = o.activation;
    p.sequences = {batch, tokens, o.packed ? cu.data() : nullptr, count};
    p.heads = o.heads;
    p.heads_kv = o.heads_kv;
    p.queries = o.queries;
    p.dim = o.dim;
    p.dim_v = o.dim_v;
    p.q = q.view();
    if (o.shared) p.q.batch = 0;
    p.k = k.view();
    p.v = v.view();
    p.scale = o.scale;
    if (o.keep_of_10 < 10) p.mask = {mask.data(), tokens, 1};
    p.out = out.data.data();
    p.lse = o.activation == PoolActivation::softmax_keys ? lse.data() : nullptr;
    return p;
  }
  QueryPoolBackwardParams backward() {
    QueryPoolBackwardParams b{};
    b.forward = forward();
    b.dout = dout.view();
    b.shared = o.shared;
    b.dq = want[0] ? dq.data.data() : nullptr;
    if (want[1]) b.dk = dk.view();
    if (want[2]) b.dv = dv.view();
    return b;
  }

  // The kept keys of a sequence, as (batch entry, token).
  std::vector<std::pair<int64_t, int64_t>> keys(int64_t s) const {
    std::vector<std::pair<int64_t, int64_t>> found;
    for (int64_t t = o.packed ? cu[s] : 0; t < (o.packed ? cu[s + 1] : tokens); ++t) {
      const int64_t b = o.packed ? 0 : s;
      if (o.keep_of_10 == 10 || mask[b * tokens + t]) found.emplace_back(b, t);
    }
    return found;
  }

  // Logits and weights of a head: [queries][kept keys]; and what an error of a logit, which is one of the sum of its
  // terms, does to a weight that isn't normalised.
  void weights(int64_t s, int64_t h, Values& x, Values& a, Values& row_lse, Values& doubt) const {
    const auto at = keys(s);
    const int64_t n = static_cast<int64_t>(at.size()), m = o.queries, group = o.heads / o.heads_kv;
    x.assign(m * n, 0);
    doubt.assign(m * n, 0);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t d = 0; d < o.dim; ++d) {
          const double term =
              o.scale * q.get(o.shared ? 0 : s, h, i, d) * k.get(at[j].first, h / group, at[j].second, d);
          x[i * n + j] += term;
          if (o.activation == PoolActivation::relu_mean) doubt[i * n + j] += std::abs(term) / static_cast<double>(n);
        }
      }
    }
    a = x;
    row_lse.assign(m, -INFINITY);
    auto softmax = [&](int64_t first, int64_t step, int64_t size, double* to) {
      double top = -INFINITY, sum = 0;
      for (int64_t i = 0; i < size; ++i) top = std::max(top, x[first + i * step]);
      for (int64_t i = 0; i < size; ++i) sum += a[first + i * step] = std::exp(x[first + i * step] - top);
      for (int64_t i = 0; i < size; ++i) a[first + i * step] /= sum;
      if (to && size > 0) *to = top + std::log(sum);
    };
    switch (o.activation) {
      case PoolActivation::softmax_keys:
        for (int64_t i = 0; i < m; ++i) softmax(i * n, 1, n, &row_lse[i]);
        break;
      case PoolActivation::softmax_queries:
        for (int64_t j = 0; j < n; ++j) softmax(j, n, m, nullptr);
        break;
      case PoolActivation::relu_mean:
        for (auto& w : a) w = w > 0 ? w / static_cast<double>(n) : 0;
    }
  }

  // Of a sum of the absolute terms `size`: weights and results are rounded to E, everything else is float32.
  double bound(double size, double doubt = 0) const {
    const double logits = 1 + o.scale * std::sqrt(o.dim) * 4;
    if (E::dtype == DType::f64) return 1e-12 * (size + doubt);
    return (E::dtype == DType::f32 ? 0 : E::eps) * size + 3e-7 * (logits * size + doubt) + 1e-7;
  }

  void check_forward() const {
    const int64_t group = o.heads / o.heads_kv;
    for (int64_t s = 0; s < count; ++s) {
      const auto at = keys(s);
      const int64_t n = static_cast<int64_t>(at.size());
      for (int64_t h = 0; h < o.heads; ++h) {
        Values x, a, row_lse, doubts;
        weights(s, h, x, a, row_lse, doubts);
        for (int64_t i = 0; i < o.queries; ++i) {
          const auto where = [&] { return testing::Message() << "sequence " << s << " head " << h << " query " << i; };
          if (o.activation == PoolActivation::softmax_keys) {
            const double got = lse[(s * o.heads + h) * o.queries + i];
            if (n == 0) ASSERT_EQ(got, -INFINITY) << where();
            else ASSERT_NEAR(got, row_lse[i], bound(0) * 10 + 4e-6 * std::abs(row_lse[i])) << where();
          }
          for (int64_t d = 0; d < o.dim_v; ++d) {
            double sum = 0, size = 0, doubt = 0;
            for (int64_t j = 0; j < n; ++j) {
              const double value = v.get(at[j].first, h / group, at[j].second, d);
              sum += a[i * n + j] * value;
              size += std::abs(a[i * n + j] * value);
              doubt += doubts[i * n + j] * std::abs(value);
            }
            ASSERT_NEAR(out.get(s, h, i, d), sum, bound(size, doubt)) << where() << " feature " << d;
          }
        }
      }
    }
  }

  // The gradients, and beside them the sums of their absolute terms.
  struct Gradients {
    PoolTensor<F64> dq, dk, dv;
    explicit Gradients(const QueryPoolCase& c)
        : dq(c.q.batch, c.o.heads, c.o.queries, c.o.dim, 0), dk(c.batch, c.o.heads_kv, c.tokens, c.o.dim, 0),
          dv(c.batch, c.o.heads_kv, c.tokens, c.o.dim_v, 0) {
      for (auto* x : {&dq, &dk, &dv}) std::fill(x->data.begin(), x->data.end(), 0.);
    }
  };

  void expect_backward(Gradients& g, Gradients& sizes) const {
    const int64_t group = o.heads / o.heads_kv, m = o.queries;
    for (int64_t s = 0; s < count; ++s) {
      const auto at = keys(s);
      const int64_t n = static_cast<int64_t>(at.size()), set = o.shared ? 0 : s;
      for (int64_t h = 0; h < o.heads; ++h) {
        Values x, a, row_lse, doubt, dp(m * n), size(m * n), ds(m * n);
        weights(s, h, x, a, row_lse, doubt);
        for (int64_t i = 0; i < m * n; ++i) {
          const auto [b, t] = at[i % n];
          for (int64_t d = 0; d < o.dim_v; ++d) {
            const double term = dout.get(s, h, i / n, d) * v.get(b, h / group, t, d);
            dp[i] += term;
            size[i] += std::abs(term);
          }
        }
        auto softmax = [&](int64_t first, int64_t step, int64_t count_) {
          double mean = 0, mean_size = 0;
          for (int64_t i = 0; i < count_; ++i) {
            mean += a[first + i * step] * dp[first + i * step];
            mean_size += a[first + i * step] * size[first + i * step];
          }
          for (int64_t i = first, end = first + count_ * step; i < end; i += step) {
            ds[i] = a[i] * (dp[i] - mean);
            size[i] = a[i] * (size[i] + mean_size);
          }
        };
        if (o.activation == PoolActivation::softmax_keys) {
          for (int64_t i = 0; i < m; ++i) softmax(i * n, 1, n);
        } else if (o.activation == PoolActivation::softmax_queries) {
          for (int64_t j = 0; j < n; ++j) softmax(j, n, m);
        } else {
          for (int64_t i = 0; i < m * n; ++i) {
            ds[i] = x[i] > 0 ? dp[i] / static_cast<double>(n) : 0;
            size[i] = x[i] > 0 ? size[i] / static_cast<double>(n) : 0;
          }
        }
        for (int64_t i = 0; i < m * n; ++i) {
          const auto [b, t] = at[i % n];
          const int64_t row = i / n, kv = h / group;
          for (int64_t d = 0; d < o.dim; ++d) {
            const double key = k.get(b, kv, t, d), query = q.get(set, h, row, d);
            g.dq.at(set, h, row, d) += o.scale * ds[i] * key;
            g.dk.at(b, kv, t, d) += o.scale * ds[i] * query;
            sizes.dq.at(set, h, row, d) += o.scale * size[i] * std::abs(key);
            sizes.dk.at(b, kv, t, d) += o.scale * size[i] * std::abs(query);
          }
          for (int64_t d = 0; d < o.dim_v; ++d) {
            g.dv.at(b, kv, t, d) += a[i] * dout.get(s, h, row, d);
            sizes.dv.at(b, kv, t, d) += (a[i] + 1e-3 * doubt[i]) * std::abs(dout.get(s, h, row, d));
          }
        }
      }
    }
  }

  void check_backward() const {
    Gradients expected(*this), sizes(*this);
    expect_backward(expected, sizes);
    const struct {
      const char* name;
      bool wanted;
      const PoolTensor<E>& got;
      const PoolTensor<F64>&want, &size;
    } all[] = {{"dq", want[0], dq, expected.dq, sizes.dq},
               {"dk", want[1], dk, expected.dk, sizes.dk},
               {"dv", want[2], dv, expected.dv, sizes.dv}};
    for (const auto& x : all) {
      for (size_t i = 0; i < x.got.data.size(); ++i) {
        const double got = E::get(x.got.data[i]);
        if (!x.wanted) ASSERT_TRUE(std::isnan(got)) << x.name << " isn't wanted, but written";
        else ASSERT_NEAR(got, x.want.data[i], bound(x.size.data[i])) << x.name << " at " << i;
      }
    }
  }
};

// Calls at the edges and random ones, for every backend: few and many queries, one and several parts of keys, more than
// 64 and 128 features.
inline std::vector<QueryPoolOptions> query_pool_calls(std::mt19937& random, int number) {
  auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  constexpr PoolActivation kActivations[] = {PoolActivation::softmax_keys, PoolActivation::softmax_queries,
                                             PoolActivation::relu_mean};
  std::vector<QueryPoolOptions> calls;
  for (int i = 0; i < number; ++i) {
    QueryPoolOptions o;
    o.activation = kActivations[i % 3];
    o.packed = random() % 2;
    o.lengths.assign(pick({1, 2, 3}), pick({0, 1, 5, 40, 130}));
    if (o.packed) {
      for (auto& n : o.lengths) n = pick({0, 0, 1, 2, 33, 65, 70});
      if (random() % 3 == 0) o.lengths[0] = 300;  // several parts
      o.spare = pick({0, 0, 3});
    } else if (random() % 4 == 0) {
      o.lengths.assign(1, 520);
    }
    o.heads_kv = pick({1, 1, 2});
    o.heads = o.heads_kv * pick({1, 1, 3});
    o.queries = pick({1, 2, 7, 16, 17, 40});
    if (o.queries > 16 && random() % 2) o.queries = 70;
    o.dim = pick({1, 5, 16, 62, 70, 130});
    o.dim_v = pick({1, 6, 30, 62, 130, 200});
    o.shared = random() % 2;
    o.keep_of_10 = pick({10, 10, 6, 1});
    o.scale = pick({1, 3}) / std::sqrt(o.dim);
    calls.push_back(o);
  }
  for (PoolActivation a : kActivations) {
    for (int64_t keep : {10, 0}) {
      QueryPoolOptions o;
      o.activation = a;
      o.lengths = {0, 0, 3};
      o.packed = true;
      o.keep_of_10 = keep;
      calls.push_back(o);
      o.packed = false;
      o.lengths = {9, 9};
      o.queries = 20;
      calls.push_back(o);
    }
  }
  return calls;
}

inline testing::Message describe(const QueryPoolOptions& o) {
  testing::Message text;
  text << "activation " << static_cast<int>(o.activation) << " packed " << o.packed << " lengths";
  for (int64_t n : o.lengths) text << ' ' << n;
  return text << " spare " << o.spare << " H " << o.heads << "/" << o.heads_kv << " M " << o.queries << " D " << o.dim
              << "x" << o.dim_v << " shared " << o.shared << " keep " << o.keep_of_10;
}

}  // namespace attn
