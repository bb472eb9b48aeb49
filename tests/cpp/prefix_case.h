// A whole prefix-softmax pooling call as random data, and its results and gradients by the definition in double. Gaps
// between rows and values that a score of -inf leaves out hold NaN.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <ostream>

#include "attn/scan.h"
#include "test_tensor.h"

namespace attn {

struct PrefixOptions {
  int64_t batch = 1, heads = 1, heads_v = 1, tokens = 70, dim = 8;
  double spread = 3;  // of scores
  int left_out = 0;   // one score of so many is -inf, and so are the first ones of every sequence
  std::vector<int32_t> cu = {};
  bool dlse = true, token_major = false;
  int64_t gap = 2;  // elements between rows: 0 lets kernels read many at once

  friend std::ostream& operator<<(std::ostream& out, const PrefixOptions& o) {
    out << "B" << o.batch << " H" << o.heads << "/" << o.heads_v << " T" << o.tokens << " D" << o.dim << " spread "
        << o.spread << " left out " << o.left_out << (o.token_major ? " token major" : "") << " gap " << o.gap << " cu";
    for (int32_t x : o.cu) out << " " << x;
    return out;
  }
};

template <class E> struct PrefixCase {
  using Stat = typename E::stat;
  PrefixOptions o;
  TestTensor<E> score, v, out, dout, dscore, dv;
  std::vector<Stat> lse, dlse;

  explicit PrefixCase(const PrefixOptions& options, uint32_t seed = 3) : o(options) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const auto tensor = [&](int64_t heads, int64_t dim) {
      return TestTensor<E>(o.batch, heads, o.tokens, dim, o.token_major, o.gap);
    };
    score = TestTensor<E>(o.batch, o.heads, o.tokens, 1, o.token_major, 2);  // rows of one element: any strides
    v = tensor(o.heads_v, o.dim), out = tensor(o.heads, o.dim), dv = out;
    dout = out;
    dscore = TestTensor<E>(o.batch, o.heads, o.tokens, 1, false, 0);  // contiguous
    v.randomize(random);
    dout.randomize(random);
    for_each([&](int64_t b, int64_t h, int64_t t) {
      score.at(b, h, t, 0) = E::put(o.spread * normal(random));
      if (!o.left_out) return;
      const int64_t in = t - first(b, t);
      if (in < o.left_out || random() % o.left_out == 0) score.at(b, h, t, 0) = E::put(-INFINITY);
    });
    // Values that no head reads, and rows of no sequence.
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t t = 0; t < o.tokens; ++t) {
        for (int64_t h = 0; h < o.heads_v; ++h) {
          bool read = false;
          for (int64_t i = 0; i < group(); ++i) read |= t < used() && score.get(b, h * group() + i, t, 0) != -INFINITY;
          for (int64_t d = 0; !read && d < o.dim; ++d) v.at(b, h, t, d) = E::put(NAN);
        }
      }
    }
    lse.assign(static_cast<size_t>(o.batch * o.heads * o.tokens), std::numeric_limits<Stat>::quiet_NaN());
    for (size_t i = 0; o.dlse && i < lse.size(); ++i) dlse.push_back(static_cast<Stat>(normal(random)));
  }

  int64_t group() const { return o.heads / o.heads_v; }
  int64_t used() const { return o.cu.empty() ? o.tokens : o.cu.back(); }
  // First token of the sequence that token t is of.
  int64_t first(int64_t, int64_t t) const {
    int64_t begin = 0;
    for (int32_t x : o.cu) {
      if (x <= t) begin = x;
    }
    return begin;
  }

  PrefixPoolParams forward() {
    PrefixPoolParams p{};
    p.dtype = E::dtype;
    p.batch = o.batch, p.heads = o.heads, p.heads_v = o.heads_v, p.tokens = o.tokens, p.dim = o.dim;
    const View4 s = score.view();
    p.score = {s.data, s.batch, s.head, s.token};
    p.v = v.view();
    p.out = out.view();
    p.lse = lse.data();
    p.cu = o.cu.empty() ? nullptr : o.cu.data();
    p.sequences = o.cu.empty() ? o.batch : static_cast<int64_t>(o.cu.size()) - 1;
    return p;
  }
  PrefixPoolBackwardParams backward() {
    PrefixPoolBackwardParams b{};
    b.forward = forward();
    b.dout = dout.view();
    b.dlse = dlse.empty() ? nullptr : dlse.data();
    b.dscore = dscore.data.data();
    b.dv = dv.view();
    return b;
  }

  // unused_written: does the kernel write rows past the last sequence, or the caller?
  void check(bool unused_written) {
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t h = 0; h < o.heads; ++h) {
        for (int64_t t = 0; t < used();) {
          int64_t end = t + 1;
          while (end < used() && first(b, end) == first(b, t)) ++end;
          check_head(b, h, t, end);
          if (testing::Test::HasFailure()) return;
          t = end;
        }
        for (int64_t t = used(); t < o.tokens; ++t) {
          const auto zero = [&](double x) { return unused_written ? x == 0 : std::isnan(x); };
          const double l = lse[(b * o.heads + h) * o.tokens + t];
          ASSERT_TRUE(unused_written ? l == -INFINITY : std::isnan(l)) << t;
          ASSERT_TRUE(zero(dscore.get(b, h, t, 0))) << t;
          for (int64_t d = 0; d < o.dim; ++d) {
            ASSERT_TRUE(zero(out.get(b, h, t, d))) << t;
            ASSERT_TRUE(zero(dv.get(b, h, t, d))) << t;
          }
        }
      }
    }
    for (auto* x : {&out, &dv}) {
      for (int64_t t = 0; t < o.tokens; ++t) {
        for (int64_t d = o.dim; d < o.dim + o.gap; ++d) ASSERT_TRUE(std::isnan(x->get(0, 0, t, d))) << "past its end";
      }
    }
  }

 private:
  // Of statistics and sums, relative to the sum of the terms' sizes.
  static constexpr double kStat = E::dtype == DType::f64 ? 1e-12 : 1e-5;

  template <class F> void for_each(F&& f) const {
    for (int64_t b = 0; b < o.batch; ++b)
      for (int64_t h = 0; h < o.heads; ++h)
        for (int64_t t = 0; t < used(); ++t) f(b, h, t);
  }

  void check_head(int64_t b, int64_t h, int64_t begin, int64_t end) {
    SCOPED_TRACE(testing::Message() << "batch " << b << " head " << h << " tokens from " << begin);
    const int64_t n = end - begin, hv = h / group(), dim = o.dim;
    struct Sum {
      double value = 0, size = 0;
      void add(double x, double magnitude) { value += x, size += magnitude; }
      void add(double x) { add(x, std::fabs(x)); }
    };
    const auto near = [](double got, const Sum& want, double relative, const char* name, int64_t t, int64_t d) {
      // Denormals of float16, and of float where sums are flushed to zero.
      ASSERT_NEAR(got, want.value, relative * std::fabs(want.value) + kStat * want.size + 6e-8)
          << name << " token " << t << " channel " << d;
    };
    std::vector<Sum> dvalue(static_cast<size_t>(n * dim)), ds(static_cast<size_t>(n));
    double top = -INFINITY;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = begin + i;
      top = std::max(top, score.get(b, h, t, 0));
      const double got = lse[(b * o.heads + h) * o.tokens + t];
      if (top == -INFINITY) {
        ASSERT_EQ(got, -INFINITY) << t;
        for (int64_t d = 0; d < dim; ++d) ASSERT_EQ(out.get(b, h, t, d), 0) << t;
        continue;
      }
      std::vector<double> weight(static_cast<size_t>(i + 1));
      double mass = 0;
      for (int64_t j = 0; j <= i; ++j) mass += weight[j] = std::exp(score.get(b, h, begin + j, 0) - top);
      const double want = top + std::log(mass);
      ASSERT_NEAR(got, want, kStat * (1 + std::fabs(want) / 30)) << t;
      Sum delta;
      for (int64_t d = 0; d < dim; ++d) {
        Sum sum;
        for (int64_t j = 0; j <= i; ++j) {
          if (weight[j] != 0) sum.add(weight[j] / mass * v.get(b, hv, begin + j, d));
        }
        near(out.get(b, h, t, d), sum, E::eps / 2, "out", t, d);
        // The kernel has out as it was rounded.
        delta.add(dout.get(b, h, t, d) * out.get(b, h, t, d));
      }
      if (o.dlse) delta.add(-dlse[(b * o.heads + h) * o.tokens + t]);
      for (int64_t j = 0; j <= i; ++j) {
        const double w = weight[j] / mass;
        if (w == 0) continue;
        for (int64_t d = 0; d < dim; ++d) {
          const double x = dout.get(b, h, t, d), y = v.get(b, hv, begin + j, d);
          dvalue[j * dim + d].add(w * x);
          ds[j].add(w * x * y);
        }
        ds[j].add(-w * delta.value, w * delta.size);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      near(dscore.get(b, h, begin + i, 0), ds[i], E::eps / 2, "dscore", begin + i, 0);
      for (int64_t d = 0; d < dim; ++d)
        near(dv.get(b, h, begin + i, d), dvalue[i * dim + d], E::eps / 2, "dv", begin + i, d);
    }
  }
};

// Around the edges of chunks and of vectors; long enough for several parts of a scan.
inline std::vector<PrefixOptions> prefix_calls() {
  std::vector<PrefixOptions> all;
  for (int64_t t : {1, 2, 63, 64, 65, 129}) all.push_back({.tokens = t, .gap = 0});
  all.push_back({.batch = 2, .heads = 4, .heads_v = 2, .tokens = 200, .dim = 64, .token_major = true, .gap = 0});
  all.push_back({.heads = 2, .tokens = 150, .dim = 33});
  all.push_back({.heads = 2, .heads_v = 2, .tokens = 90, .dim = 136, .dlse = false, .gap = 8});
  all.push_back({.tokens = 1200, .dim = 3});
  all.push_back({.tokens = 300, .dim = 1, .spread = 40});
  all.push_back({.tokens = 600, .dim = 8, .spread = 2, .left_out = 3, .gap = 0});
  all.push_back({.heads = 2, .tokens = 300, .dim = 5, .left_out = 130});  // whole chunks of nothing
  all.push_back({.heads = 2, .tokens = 700, .dim = 16, .cu = {0, 0, 300, 300, 301, 690}, .gap = 0});
  all.push_back({.heads = 3, .heads_v = 3, .tokens = 200, .dim = 4, .left_out = 5, .cu = {0, 70, 130, 200}});
  all.push_back({.tokens = 0});
  all.push_back({.tokens = 70, .dim = 0});
  return all;
}

}  // namespace attn
