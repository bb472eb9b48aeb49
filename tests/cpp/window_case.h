// Window pooling of random rows, its result and its gradient by the definition in double, and the calls that every
// backend's tests make.
#pragma once

#include "sequence_case.h"

namespace attn {

struct WindowOptions : SequenceOptions {
  int64_t window = 3, dilation = 1;
  bool mean = false, count_include_pad = false;
};

// Positions of the window around `at` that take part.
template <class TakesPart>
std::vector<int64_t> window_positions(int64_t window, int64_t dilation, int64_t at, int64_t length,
                                      TakesPart&& takes_part) {
  std::vector<int64_t> found;
  for (int64_t i = at % dilation; i < length; i += dilation) {
    if (std::abs(i - at) / dilation <= window / 2 && takes_part(i)) found.push_back(i);
  }
  return found;
}

template <class E> struct WindowCase {
  WindowOptions o;
  std::mt19937 random;
  SequenceBounds sequences;
  TokenRows<E> x, dout;
  KeptTokens kept;
  PoolResult<E> out, dx;

  explicit WindowCase(const WindowOptions& options)
      : o(options), random(options.seed), sequences(o), x(TokenRows<E>::random(o, o.tokens, random)),
        dout(TokenRows<E>::random(o, o.tokens, random)), kept(o.batch, o.tokens, o.masked, random),
        out(o.batch * o.tokens * o.channels), dx(o.batch * o.tokens * o.channels) {
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t t = 0; t < o.tokens; ++t) {
        if (kept(b, t) && t < sequences.end()) continue;
        x.hide(b, t);
        dout.hide(b, t);
      }
    }
  }

  WindowPoolParams forward() {
    return {E::dtype,   sequences.view(), o.channels,          x.view(),    o.window,
            o.dilation, o.mean,           o.count_include_pad, kept.view(), out.data.data()};
  }
  // Without x where the gradient doesn't read it.
  WindowPoolBackwardParams backward() {
    WindowPoolBackwardParams b{forward(), dout.view(), dx.data.data()};
    if (o.mean) b.forward.x = {nullptr, 0, 0};
    return b;
  }

  void check() const {
    const size_t n = out.data.size();
    std::vector<double> want(n), size(n), gradient(n), gradient_size(n);
    for (int64_t s = 0; s < sequences.count(); ++s) {
      const SequenceSpan span = sequences.span(s);
      const auto takes_part = [&](int64_t t) { return kept(span.batch, span.first + t); };
      for (int64_t t = 0; t < span.length; ++t) {
        if (!takes_part(t)) continue;
        const std::vector<int64_t> in = window_positions(o.window, o.dilation, t, span.length, takes_part);
        const auto index = [&](int64_t at, int64_t c) {
          return (span.batch * o.tokens + span.first + at) * o.channels + c;
        };
        const double n_of = static_cast<double>(o.count_include_pad ? o.window : static_cast<int64_t>(in.size()));
        for (int64_t c = 0; c < o.channels; ++c) {
          std::vector<double> values;
          for (const int64_t i : in) values.push_back(x.get(span.batch, span.first + i, c));
          const double dy = dout.get(span.batch, span.first + t, c);
          const int64_t top = first_maximum(values);
          for (size_t i = 0; i < in.size(); ++i) {
            const double share = o.mean ? 1 / n_of : static_cast<int64_t>(i) == top;
            want[index(t, c)] += share * values[i];
            size[index(t, c)] += o.mean ? std::abs(share * values[i]) : 0;
            gradient[index(in[i], c)] += share * dy;
            gradient_size[index(in[i], c)] += std::abs(share * dy);
          }
        }
      }
    }
    for (size_t i = 0; i < n; ++i) {
      const auto where = [&] {
        const auto at = static_cast<int64_t>(i) / o.channels;
        return testing::Message() << "batch " << at / o.tokens << " token " << at % o.tokens << " channel "
                                  << static_cast<int64_t>(i) % o.channels;
      };
      ASSERT_NEAR(out[i], want[i], o.mean ? sum_error<E>(want[i], size[i]) : 0) << where();
      ASSERT_NEAR(dx[i], gradient[i], sum_error<E>(gradient[i], gradient_size[i])) << "gradient of " << where();
    }
  }
};

inline std::vector<WindowOptions> window_calls() {
  std::vector<WindowOptions> all;
  const int64_t shapes[][2] = {{3, 1}, {1, 1}, {5, 1}, {3, 2}, {7, 3}, {99, 1}};  // window, dilation
  for (const bool mean : {false, true}) {
    for (const auto& shape : shapes) {
      for (const bool masked : {false, true}) {
        for (const bool packed : {false, true}) {
          WindowOptions o;
          o.window = shape[0];
          o.dilation = shape[1];
          o.mean = mean;
          o.masked = masked;
          o.count_include_pad = all.size() % 3 == 1;
          o.tokens = 70;
          o.batch = 1 + static_cast<int64_t>(all.size() % 2);
          o.values = all.size() % 2 ? Values::ties : Values::rectified;
          o.negative = all.size() % 5 == 4;
          if (packed) o.pack({33, 0, 1, 2, 64, 0, 5});
          o.whole = all.size() % 3 != 0;
          o.channels = o.whole ? 16 : 5;
          o.shift = static_cast<int64_t>(all.size() % 2);
          o.seed = static_cast<unsigned>(all.size());
          all.push_back(o);
        }
      }
    }
  }
  for (const int64_t channels : {0, 1, 64}) {
    WindowOptions o = all[0];
    o.channels = channels;
    o.whole = channels != 1;
    all.push_back(o);
  }
  WindowOptions o;
  o.batch = 0;
  all.push_back(o);
  o.batch = 2;
  o.tokens = 0;
  all.push_back(o);
  o.tokens = 1;
  o.window = INT32_MAX - 1;
  o.window -= o.window % 2 == 0;
  o.dilation = INT32_MAX - 1;
  all.push_back(o);
  return all;
}

}  // namespace attn
