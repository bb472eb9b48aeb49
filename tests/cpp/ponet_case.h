// PoNet's mixing of random rows, its results by the definition in double, and the calls that every backend's tests
// make.
#pragma once

#include "sequence_case.h"
#include "window_case.h"

namespace attn {

struct PonetOptions : SequenceOptions {
  int64_t heads = 2, segment_length = 0, window = 3;
  bool ids = false, special = false, pooled_query = false;
};

template <class E> struct PonetCase {
  using Stat = typename E::stat;
  PonetOptions o;
  std::mt19937 random;
  SequenceBounds sequences;
  TokenRows<E> q, k, o_rows, segment, local;
  KeptTokens kept, special;
  std::vector<int32_t> ids;
  std::vector<Stat> query, pooled, global, lse;
  PoolResult<E> out;

  explicit PonetCase(const PonetOptions& options)
      : o(options), random(o.seed), sequences(o), q(TokenRows<E>::random(o, o.tokens, random)),
        k(TokenRows<E>::random(o, o.tokens, random)), o_rows(TokenRows<E>::random(o, o.tokens, random)),
        segment(TokenRows<E>::random(o, o.tokens, random)), local(TokenRows<E>::random(o, o.tokens, random)),
        kept(o.batch, o.tokens, o.masked, random), special(o.batch, o.tokens, o.special, random),
        query(sequences.count() * o.channels), pooled(query.size(), std::numeric_limits<Stat>::quiet_NaN()),
        global(pooled), lse(sequences.count() * o.heads, std::numeric_limits<Stat>::quiet_NaN()),
        out(o.batch * o.tokens * o.channels) {
    for (auto& x : query) x = static_cast<Stat>(pool_value(PoolOptions{}, random));
    for (auto& x : special.data) x = !x;  // a third of the tokens
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t t = 0; t < o.tokens; ++t) {
        if (kept(b, t) && t < sequences.end()) continue;
        for (TokenRows<E>* x : {&q, &k, &o_rows, &segment, &local}) x->hide(b, t);
      }
    }
    if (!o.ids) return;
    ids.resize(o.batch * o.tokens);
    for (int64_t s = 0; s < sequences.count(); ++s) {
      const SequenceSpan span = sequences.span(s);
      int32_t id = 0;
      for (int64_t t = 0, left = 0; t < span.length; ++t, --left) {
        if (left == 0) {
          id += static_cast<int32_t>(1 + random() % 3);
          left = static_cast<int64_t>(random() % 2 ? 1 + random() % 5 : 1 + random() % 90);
        }
        ids[span.batch * o.tokens + span.first + t] = id;
      }
    }
  }

  PonetParams forward() {
    PonetParams p{};
    p.dtype = E::dtype;
    p.sequences = sequences.view();
    p.channels = o.channels;
    p.heads = o.heads;
    if (!o.pooled_query) p.q = q.view();
    p.k = k.view();
    p.o = o_rows.view();
    p.segment = segment.view();
    p.local = local.view();
    p.query = o.pooled_query ? query.data() : nullptr;
    p.ids = o.ids ? ids.data() : nullptr;
    p.segment_length = o.segment_length;
    p.window = o.window;
    p.mask = kept.view();
    p.special = special.view();
    p.out = out.data.data();
    p.pooled = pooled.data();
    p.global = global.data();
    p.lse = lse.data();
    return p;
  }

  bool is_special(int64_t b, int64_t t) const { return !special.data.empty() && special(b, t); }
  int64_t segment_of(const SequenceSpan& s, int64_t t) const {
    if (o.ids) return ids[s.batch * o.tokens + s.first + t];
    return o.segment_length > 0 ? t / o.segment_length : 0;
  }

  void check() const {
    for (int64_t s = 0; s < sequences.count(); ++s) {
      check_sequence(s);
      if (testing::Test::HasFatalFailure()) return;
    }
    for (int64_t b = 0; b < o.batch; ++b) {
      for (int64_t t = sequences.end(); t < o.tokens; ++t) {
        for (int64_t c = 0; c < o.channels; ++c) ASSERT_EQ(out[(b * o.tokens + t) * o.channels + c], 0) << "left over";
      }
    }
  }

  static double tolerance(double size) { return (E::dtype == DType::f64 ? 1e-13 : 1e-5) * (1e-3 + size); }

  void check_sequence(int64_t number) const {
    const SequenceSpan s = sequences.span(number);
    const int64_t C = o.channels, D = C / o.heads;
    std::vector<int64_t> tokens;
    for (int64_t t = 0; t < s.length; ++t) {
      if (kept(s.batch, s.first + t)) tokens.push_back(t);
    }
    std::vector<double> g(C), G(C);
    for (int64_t c = 0; c < C; ++c) {
      double size = 0;
      if (o.pooled_query) g[c] = query[number * C + c], size = std::abs(g[c]);
      for (const int64_t t : tokens) {
        if (o.pooled_query) break;
        g[c] += q.get(s.batch, s.first + t, c) / static_cast<double>(tokens.size());
        size += std::abs(q.get(s.batch, s.first + t, c)) / static_cast<double>(tokens.size());
      }
      ASSERT_NEAR(pooled[number * C + c], g[c], tolerance(size)) << "query of sequence " << number << " channel " << c;
    }
    for (int64_t h = 0; h < o.heads; ++h) {
      std::vector<double> logit;
      double sum = 0;
      for (const int64_t t : tokens) {
        double x = 0;
        for (int64_t c = h * D; c < (h + 1) * D; ++c) x += g[c] * k.get(s.batch, s.first + t, c);
        logit.push_back(x / std::sqrt(static_cast<double>(D)));
        sum += std::exp(logit.back());
      }
      const double want = tokens.empty() ? -kInfinity : std::log(sum);
      if (tokens.empty()) ASSERT_EQ(lse[number * o.heads + h], want);
      else ASSERT_NEAR(lse[number * o.heads + h], want, tolerance(1 + std::abs(want))) << "lse of head " << h;
      for (int64_t c = h * D; c < (h + 1) * D; ++c) {
        double size = 0;
        for (size_t i = 0; i < tokens.size(); ++i) {
          const double x = std::exp(logit[i]) / sum * k.get(s.batch, s.first + tokens[i], c);
          G[c] += x;
          size += std::abs(x);
        }
        ASSERT_NEAR(global[number * C + c], G[c], tolerance(size)) << "sequence " << number << " channel " << c;
      }
    }
    for (int64_t t = 0; t < s.length; ++t) check_token(s, t, tokens, G);
  }

  void check_token(const SequenceSpan& s, int64_t t, const std::vector<int64_t>& tokens,
                   const std::vector<double>& G) const {
    const bool keeps = kept(s.batch, s.first + t), is = is_special(s.batch, s.first + t);
    const std::vector<int64_t> in = window_positions(o.window, 1, t, s.length, [&](int64_t i) {
      return kept(s.batch, s.first + i) && !is_special(s.batch, s.first + i);
    });
    for (int64_t c = 0; c < o.channels; ++c) {
      double m = -kInfinity, top = -kInfinity, want = 0, size = 0;
      for (const int64_t i : tokens) {
        if (segment_of(s, i) == segment_of(s, t)) m = std::max(m, segment.get(s.batch, s.first + i, c));
      }
      for (const int64_t i : in) top = std::max(top, local.get(s.batch, s.first + i, c));
      if (keeps) {
        const double factor = o_rows.get(s.batch, s.first + t, c);
        want = is ? G[c] * factor : (G[c] + m) * factor + top;
        size = std::abs(G[c] * factor) + (is ? 0 : std::abs(m * factor) + std::abs(top));
      }
      const double got = out[(s.batch * o.tokens + s.first + t) * o.channels + c];
      ASSERT_NEAR(got, want, keeps ? sum_error<E>(want, size) + tolerance(size + 1) : 0)
          << "batch " << s.batch << " token " << s.first + t << " channel " << c;
    }
  }
};

inline std::vector<PonetOptions> ponet_calls() {
  std::vector<PonetOptions> all;
  for (const bool packed : {false, true}) {
    for (const bool masked : {false, true}) {
      for (int rule = 0; rule < 6; ++rule) {
        PonetOptions o;
        o.tokens = 150;
        o.batch = 2;
        if (packed) o.pack({70, 0, 1, 2, 33, 0, 130});
        o.masked = masked;
        o.ids = rule == 0;
        o.segment_length = rule == 1 ? 7 : rule == 2 ? 32 : rule == 3 ? 50 : rule == 4 ? 2 : 0;
        o.window = all.size() % 4 == 3 ? 1 : all.size() % 4 == 1 ? 7 : 3;
        o.special = all.size() % 3 == 1;
        o.pooled_query = all.size() % 3 == 2;
        o.whole = all.size() % 4 != 2;
        o.channels = o.whole ? 48 : 15;
        o.heads = o.whole ? (rule % 2 ? 3 : 1) : 5;
        o.values = all.size() % 2 ? Values::ties : Values::rectified;
        o.negative = all.size() % 7 == 6;
        o.shift = static_cast<int64_t>(all.size() % 2);
        o.seed = static_cast<unsigned>(all.size());
        all.push_back(o);
      }
    }
  }
  PonetOptions o = all[0];
  o.channels = 520;  // a head wider than a warp's vectors
  o.heads = 1;
  o.tokens = 40;
  all.push_back(o);
  o.channels = 24;
  o.heads = 6;  // rows on 16 bytes, those of a head on 8 in 16 bits
  all.push_back(o);
  o.tokens = 0;
  all.push_back(o);
  return all;
}

}  // namespace attn
