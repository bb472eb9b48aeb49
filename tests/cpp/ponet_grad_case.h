// PoNet's gradients by their formulas (csrc/cpu/ponet_grad.h) in double.
#pragma once

#include "ponet_case.h"

namespace attn {

template <class E> struct PonetGradCase : PonetCase<E> {
  using Base = PonetCase<E>;
  using Base::o, Base::sequences, Base::kept;
  using typename Base::Stat;
  TieRule tie;
  TokenRows<E> dout;
  PoolResult<E> dq, dk, d_o, dsegment, dlocal;
  std::vector<Stat> dquery;

  PonetGradCase(const PonetOptions& options, TieRule rule)
      : Base(options), tie(rule), dout(TokenRows<E>::random(smooth(options), o.tokens, this->random)),
        dq(o.batch * o.tokens * o.channels), dk(dq), d_o(dq), dsegment(dq), dlocal(dq),
        dquery(this->query.size(), std::numeric_limits<Stat>::quiet_NaN()) {
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t t = 0; t < o.tokens; ++t) {
        if (!kept(b, t) || t >= sequences.end()) dout.hide(b, t);
      }
    }
  }
  static PonetOptions smooth(PonetOptions o) {
    o.values = Values::normal;
    o.negative = false;
    return o;
  }

  PonetBackwardParams backward() {
    PonetBackwardParams b{};
    b.forward = this->forward();
    b.tie = tie;
    b.dout = dout.view();
    b.dq = o.pooled_query ? nullptr : dq.data.data();
    b.dk = dk.data.data();
    b.d_o = d_o.data.data();
    b.dsegment = dsegment.data.data();
    b.dlocal = dlocal.data.data();
    b.dquery = dquery.data();
    return b;
  }

  void check_gradients() const {
    for (int64_t s = 0; s < sequences.count(); ++s) {
      check_sequence_gradients(s);
      if (testing::Test::HasFatalFailure()) return;
    }
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t i = (b * o.tokens + sequences.end()) * o.channels; i < (b + 1) * o.tokens * o.channels; ++i) {
        if (!o.pooled_query) { ASSERT_EQ(dq[i], 0) << "left over"; }
        for (const PoolResult<E>* x : {&dk, &d_o, &dsegment, &dlocal}) ASSERT_EQ((*x)[i], 0) << "left over";
      }
    }
  }

 private:
  // Values and the sizes of what they are sums of, [tokens, C] or [C].
  struct Sums {
    std::vector<double> x, size;
    explicit Sums(int64_t n) : x(n), size(n) {}
    void add(int64_t at, double value, double large) {
      x[at] += value;
      size[at] += large;
    }
  };

  void check_sequence_gradients(int64_t number) const {
    const SequenceSpan s = sequences.span(number);
    const int64_t C = o.channels, D = C / o.heads, first = s.batch * o.tokens + s.first;
    const auto value = [&](const TokenRows<E>& rows, int64_t t, int64_t c) {
      return rows.get(s.batch, s.first + t, c);
    };
    std::vector<int64_t> tokens;
    for (int64_t t = 0; t < s.length; ++t) {
      if (kept(s.batch, s.first + t)) tokens.push_back(t);
    }
    const double n = static_cast<double>(tokens.size());
    const auto special = [&](int64_t t) { return this->is_special(s.batch, s.first + t); };

    // The global stage once more.
    std::vector<double> g(C), G(C), p(s.length * o.heads);
    for (int64_t c = 0; c < C; ++c) {
      if (o.pooled_query) {
        g[c] = this->query[number * C + c];
        continue;
      }
      for (const int64_t t : tokens) g[c] += value(this->q, t, c) / n;
    }
    const double scale = 1 / std::sqrt(static_cast<double>(D));
    for (int64_t h = 0; h < o.heads; ++h) {
      double sum = 0;
      for (const int64_t t : tokens) {
        double x = 0;
        for (int64_t c = h * D; c < (h + 1) * D; ++c) x += g[c] * value(this->k, t, c);
        sum += p[t * o.heads + h] = std::exp(x * scale);
      }
      for (const int64_t t : tokens) p[t * o.heads + h] /= sum;
    }
    for (const int64_t t : tokens) {
      for (int64_t c = 0; c < C; ++c) G[c] += p[t * o.heads + c / D] * value(this->k, t, c);
    }

    // Tokens.
    Sums want_o(s.length * C), want_segment(s.length * C), want_local(s.length * C), dG(C);
    for (int64_t c = 0; c < C; ++c) {
      for (const int64_t t : tokens) {
        const double dy = value(dout, t, c), factor = value(this->o_rows, t, c);
        dG.add(c, dy * factor, std::abs(dy * factor));
        want_o.add(t * C + c, dy * G[c], std::abs(dy) * (1 + std::abs(G[c])));
        if (special(t)) continue;
        const std::vector<int64_t> in = window_positions(
            o.window, 1, t, s.length, [&](int64_t i) { return kept(s.batch, s.first + i) && !special(i); });
        std::vector<double> values;
        for (const int64_t i : in) values.push_back(value(this->local, i, c));
        want_local.add(in[first_maximum(values)] * C + c, dy, std::abs(dy));
      }
      for (size_t from = 0, to = 0; from < tokens.size(); from = to) {
        std::vector<double> values;
        double total = 0, size = 0;
        for (; to < tokens.size() && this->segment_of(s, tokens[to]) == this->segment_of(s, tokens[from]); ++to) {
          const double t = value(dout, tokens[to], c) * value(this->o_rows, tokens[to], c);
          values.push_back(value(this->segment, tokens[to], c));
          if (!special(tokens[to])) total += t, size += std::abs(t);
        }
        const int64_t top = first_maximum(values);
        const double m = values[top], equal = static_cast<double>(std::count(values.begin(), values.end(), m));
        for (size_t i = 0; i < values.size(); ++i) {
          const int64_t t = tokens[from + i];
          const double share = tie == TieRule::even ? (values[i] == m) / equal : static_cast<int64_t>(i) == top;
          want_segment.add(t * C + c, share * total, share * size);
          const double dy = value(dout, t, c);
          if (!special(t)) want_o.add(t * C + c, dy * m, std::abs(dy * m));
        }
      }
    }

    // Keys.
    Sums want_k(s.length * C), dg(C);
    for (int64_t h = 0; h < o.heads; ++h) {
      double delta = 0, delta_size = 0;
      for (int64_t c = h * D; c < (h + 1) * D; ++c) {
        delta += dG.x[c] * G[c];
        delta_size += dG.size[c] * (std::abs(G[c]) + 0.1);
      }
      for (const int64_t t : tokens) {
        double dp = 0, size = delta_size;
        for (int64_t c = h * D; c < (h + 1) * D; ++c) {
          dp += dG.x[c] * value(this->k, t, c);
          size += dG.size[c] * std::abs(value(this->k, t, c));
        }
        const double w = p[t * o.heads + h], da = w * (dp - delta) * scale, da_size = w * size * scale;
        for (int64_t c = h * D; c < (h + 1) * D; ++c) {
          want_k.add(t * C + c, w * dG.x[c] + da * g[c], w * dG.size[c] + da_size * (std::abs(g[c]) + 0.1));
          dg.add(c, da * value(this->k, t, c), da_size * std::abs(value(this->k, t, c)));
        }
      }
    }

    const auto near = [&](const char* name, const PoolResult<E>& got, int64_t t, int64_t c, double want, double size) {
      ASSERT_NEAR(got[(first + t) * C + c], want, sum_error<E>(want, size) + Base::tolerance(size))
          << name << ", batch " << s.batch << " token " << s.first + t << " channel " << c;
    };
    for (int64_t c = 0; c < C; ++c) {
      ASSERT_NEAR(dquery[number * C + c], dg.x[c], Base::tolerance(dg.size[c])) << "dquery " << number << " " << c;
      for (int64_t t = 0; t < s.length; ++t) {
        const int64_t at = t * C + c;
        near("dk", dk, t, c, want_k.x[at], want_k.size[at]);
        near("do", d_o, t, c, want_o.x[at], want_o.size[at]);
        near("dsegment", dsegment, t, c, want_segment.x[at], want_segment.size[at]);
        near("dlocal", dlocal, t, c, want_local.x[at], want_local.size[at]);
        const bool gets = kept(s.batch, s.first + t);
        if (!o.pooled_query) near("dq", dq, t, c, gets ? dg.x[c] / n : 0, gets ? dg.size[c] / n : 0);
        if (!gets) {
          for (const PoolResult<E>* x : {&dk, &d_o, &dsegment, &dlocal}) ASSERT_EQ((*x)[(first + t) * C + c], 0);
        }
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
};

}  // namespace attn
