// Segment pooling of random rows, its result and its gradient by the definition in double, and the calls that every
// backend's tests make.
#pragma once

#include "pool_case.h"

namespace attn {

struct SegmentOptions : PoolOptions {
  std::vector<int64_t> lengths;  // of the segments of a batch entry, shuffled for each
  PoolReduce reduce = PoolReduce::max;
  TieRule tie = TieRule::first;
};

template <class E> struct SegmentCase {
  SegmentOptions o;
  std::mt19937 random;
  TokenRows<E> x, dout;
  KeptTokens kept;
  std::vector<int32_t> offsets;
  PoolResult<E> out, dx;

  int64_t segments() const { return static_cast<int64_t>(o.lengths.size()); }

  static PoolOptions rows_of_dout(SegmentOptions o) {
    o.negative = false;
    o.values = Values::normal;
    return o;
  }

  explicit SegmentCase(const SegmentOptions& options)
      : o(options), random(options.seed), x(TokenRows<E>::random(o, o.tokens, random)),
        dout(TokenRows<E>::random(rows_of_dout(o), segments(), random)), kept(o.batch, o.tokens, o.masked, random),
        out(o.batch * segments() * o.channels), dx(o.batch * o.tokens * o.channels) {
    for (int64_t b = 0; b < o.batch; ++b) {
      std::shuffle(o.lengths.begin(), o.lengths.end(), random);
      int32_t at = 0;
      offsets.push_back(at);
      for (const int64_t n : o.lengths) offsets.push_back(at += static_cast<int32_t>(n));
      EXPECT_LE(at, o.tokens);
      EXPECT_TRUE(at == o.tokens || o.batch == 1) << "tokens past the last segment need a packed batch";
      for (int64_t t = 0; t < o.tokens; ++t) {
        if (!kept(b, t) || t >= at) x.hide(b, t);
      }
    }
  }

  SegmentPoolParams forward() {
    return {E::dtype,       o.batch,     o.tokens, o.channels,      segments(), x.view(),
            offsets.data(), kept.view(), o.reduce, out.data.data(), nullptr};
  }
  // Without x where the gradient doesn't read it.
  SegmentPoolBackwardParams backward() {
    SegmentPoolBackwardParams b{forward(), o.tie, dout.view(), dx.data.data()};
    if (o.reduce != PoolReduce::max) b.forward.x = {nullptr, 0, 0};
    return b;
  }

  void check() const {
    for (int64_t b = 0; b < o.batch; ++b) {
      std::vector<double> gradient(o.tokens);
      for (int64_t c = 0; c < o.channels; ++c) {
        std::fill(gradient.begin(), gradient.end(), 0);
        for (int64_t s = 0; s < segments(); ++s) check_segment(b, s, c, gradient);
        for (int64_t t = 0; t < o.tokens; ++t) {
          ASSERT_NEAR(dx[(b * o.tokens + t) * o.channels + c], gradient[t],
                      sum_error<E>(gradient[t], std::abs(gradient[t])))
              << "gradient of batch " << b << " token " << t << " channel " << c;
        }
      }
    }
  }

  void check_segment(int64_t b, int64_t s, int64_t c, std::vector<double>& gradient) const {
    std::vector<int64_t> tokens;
    std::vector<double> values;
    double sum = 0, size = 0;
    for (int64_t t = offsets[b * (segments() + 1) + s]; t < offsets[b * (segments() + 1) + s + 1]; ++t) {
      if (!kept(b, t)) continue;
      tokens.push_back(t);
      values.push_back(x.get(b, t, c));
      sum += values.back();
      size += std::abs(values.back());
    }
    const double n = static_cast<double>(values.size()), dy = dout.get(b, s, c);
    double want = 0, error = 0;
    if (n > 0) {
      const double top = values[first_maximum(values)];
      switch (o.reduce) {
        case PoolReduce::max: want = top; break;
        case PoolReduce::mean: want = sum / n, error = sum_error<E>(want, size / n); break;
        case PoolReduce::sum: want = sum, error = sum_error<E>(want, size); break;
        case PoolReduce::first: want = values.front(); break;
        case PoolReduce::last: want = values.back(); break;
      }
      const double tied = static_cast<double>(std::count(values.begin(), values.end(), top));
      for (size_t i = 0; i < values.size(); ++i) {
        double share = 0;
        switch (o.reduce) {
          case PoolReduce::max:
            if (o.tie == TieRule::even) share = values[i] == top ? 1 / tied : 0;
            else share = static_cast<int64_t>(i) == first_maximum(values);
            break;
          case PoolReduce::mean: share = 1 / n; break;
          case PoolReduce::sum: share = 1; break;
          case PoolReduce::first: share = i == 0; break;
          case PoolReduce::last: share = i + 1 == values.size(); break;
        }
        gradient[tokens[i]] = share * dy;
      }
    }
    ASSERT_NEAR(out[(b * segments() + s) * o.channels + c], want, error)
        << "batch " << b << " segment " << s << " channel " << c;
  }
};

// Empty segments, single tokens, some longer than a part of the GPU's kernels, tokens past the last segment.
inline std::vector<SegmentOptions> segment_calls() {
  std::vector<SegmentOptions> all;
  const std::vector<std::vector<int64_t>> lengths = {{3, 0, 1, 7, 5, 1, 0, 3}, {64, 1, 0, 65, 2, 130}, {200}, {}};
  for (const auto reduce : {PoolReduce::max, PoolReduce::mean, PoolReduce::sum, PoolReduce::first, PoolReduce::last}) {
    for (const auto& l : lengths) {
      for (const bool masked : {false, true}) {
        SegmentOptions o;
        o.lengths = l;
        o.reduce = reduce;
        o.masked = masked;
        o.tokens = 0;
        for (const int64_t n : l) o.tokens += n;
        if (masked || l.empty()) o.batch = 1, o.tokens += 5;
        o.whole = all.size() % 3 != 1;
        o.channels = o.whole ? 40 : 11;
        o.values = all.size() % 2 ? Values::ties : Values::rectified;
        o.negative = all.size() % 5 == 4;
        o.shift = static_cast<int64_t>(all.size() % 2);
        o.seed = static_cast<unsigned>(all.size());
        all.push_back(o);
        if (reduce != PoolReduce::max) continue;
        o.tie = TieRule::even;
        all.push_back(o);
      }
    }
  }
  for (const int64_t channels : {0, 1, 8, 264}) {
    SegmentOptions o = all[0];
    o.channels = channels;
    o.whole = channels != 1;
    all.push_back(o);
  }
  SegmentOptions o = all[0];
  o.batch = 0;
  all.push_back(o);
  return all;
}

}  // namespace attn
