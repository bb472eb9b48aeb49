// The passes of causal flow attention's backward over one segment of a group's tokens. With h_t = dout_t . out_t,
// a_t = sigmoid(conserved_t) and sums over u >= t written as running sums in reversed time:
//
//   d sink_t, d source_t, x_t of the product: the forward's product in other roles (scan_product.h)
//
//   d conserved of the source at t:  weight_t dweight_t - weight_t / t gamma_t,
//     gamma_t = dweight_t weight_t + (1 - weight_{t+1} / (t + 1)) gamma_{t+1}
//
//   alpha_t, beta_t:  sums of (sink + eps) dconserved sink / t, (source + eps) dconserved source / t
//
//   d outgoing_t = -t source_t . alpha_t / outgoing_t^2
//
//   d incoming_t = -(h_t + t sink_t . beta_t / incoming_t) / incoming_t
//
//   kappa_t, theta_t:  sums of (sink + eps) d incoming, (source + eps) d outgoing
//
// Each line needs the sums of the one before over all later tokens, so each is a two-level scan.
#pragma once

#include "cpu/flow_running_sums.h"
#include "cpu/flow_segment.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> class FlowCausalPasses {
  using Rows = FlowRows<In>;
  using T = typename Rows::T;
  using Product = ScanProduct<T>;
  struct Scratch;

 public:
  using A = typename Rows::A;

  using Segment = FlowSegment<In, Scratch>;

  explicit FlowCausalPasses(const FlowBackwardParams& params)
      : b_(params), p_(params.forward), rows_(p_), ld_(rows_.ld), ld_v_(rows_.ld_v),
        numbers_(kNumbers * p_.batch * p_.heads * p_.tq) {
    Carve probe{nullptr};
    const Scratch w(*this, probe);
    scratch_bytes_ = probe.used;
    tall_ = w.tall.state_size();
    wide_ = w.wide.state_size();
    before_size_ = 4 * ld_ + wide_;
    after_size_ = tall_ + wide_;
  }

  const Rows& rows() const { return rows_; }
  int64_t width() const { return ld_; }   // of a vector of features
  int64_t tall() const { return tall_; }  // of sink (x) g
  int64_t wide() const { return wide_; }  // of x (x) source, and of g (x) sink
  int64_t before_size() const { return before_size_; }
  int64_t after_size() const { return after_size_; }

  template <class F> void with_segment(int64_t g, int64_t segment, F&& fn) const {
    scan::with_segment<Scratch>(*this, rows_, scratch_bytes_, g, segment, fn);
  }

  // ---- what a segment adds to sums ---------------------------------------------------------------------------------

  void sum_before(const Segment& s, A* added) const {
    std::memset(added, 0, before_size_ * sizeof(A));
    normalisers(s, s.w.x[0], s.w.x[1]);
    add_block_rows<A>(s.w.sources, ld_, s.n, nullptr, added);
    add_block_rows<A>(s.w.sinks, ld_, s.n, nullptr, added + ld_);
    add_block_rows<A>(s.w.sources, ld_, s.n, s.w.x[1], added + 2 * ld_);
    add_block_rows<A>(s.w.sinks, ld_, s.n, s.w.x[0], added + 3 * ld_);
    for_chunks(s, false, [&](int64_t first, int64_t n) {
      load_values(s, first, n);
      s.w.wide.update(added + 4 * ld_);
    });
  }

  void sum_after(const Segment& s, A* added) const {
    std::memset(added, 0, after_size_ * sizeof(A));
    allocations(s, s.w.x[0]);
    for_chunks(s, true, [&](int64_t first, int64_t n) {
      load_tall(s, s.w.x[0], first, n);
      s.w.tall.update(added);
      load_wide(s, s.w.x[0], first, n);
      s.w.wide.update(added + tall_);
    });
  }

  // h, dv, and d weight in the place of d conserved of sources. `added`: what the segment adds to sink (x) g.
  void weight_gradients(const Segment& s, const A* after, A* added) const {
    std::memset(added, 0, tall_ * sizeof(A));
    Product& x = s.w.tall;
    A *a = s.w.x[0], *dots = number(s, kDot), *dweight = number(s, kDSource);
    allocations(s, a);
    for (int64_t i = 0; i < s.n; ++i) { dots[i] = dot_elements_as<A>(dout(s, i), result(p_.out, s, i), p_.dim_v); }
    for_chunks(s, true, [&](int64_t first, int64_t n) {
      for (int64_t i = 0; i < n; ++i) copy_row(s.w.sources + (first + n - 1 - i) * ld_, x.a + i * x.ld_in);
      x.set_queries(n);
      x.set_state(after, added);
      load_tall(s, a, first, n);
      x.multiply(n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = first + n - 1 - i;
        const A* dx = x.out + i * x.ld_out;
        dweight[at] = dot_elements_as<A>(dx, rows_.v_row(s.tokens, s.g, s.begin + at), p_.dim_v);
        store_scaled_row(result(b_.dv, s, at), s.weight()[at], dx, p_.dim_v);
      }
      x.update(added);
    });
  }

  // How gamma passes through the segment, last token first.
  Line gamma_line(const Segment& s) const {
    Line line{1, 0};
    for (int64_t i = s.n - 1; i >= 0; --i) {
      const double keep = 1 - static_cast<double>(s.weight()[i]) / (s.begin + i + 1);
      const double own = static_cast<double>(s.weight()[i]) * number(s, kDSource)[i];
      line = {keep * line.slope, keep * (line.offset + own)};
    }
    return line;
  }

  // d conserved of sources, in the place of d weight.
  void source_gradients(const Segment& s, double carry) const {
    A* d = number(s, kDSource);
    for (int64_t i = s.n - 1; i >= 0; --i) {
      const double w = s.weight()[i], share = w / (s.begin + i + 1);
      const double gamma = w * d[i] + carry;
      d[i] = static_cast<A>(w * d[i] - share * gamma) * cut_slope(s.conserved_source()[i], rows_.clamp());
      carry = (1 - share) * gamma;
    }
  }

  void sum_conserved(const Segment& s, A* added) const {
    conserved_gradients(s, s.w.x[0], s.w.x[1]);
    sum_with_eps(s, s.w.x[0], s.w.x[1], added);
  }

  // d incoming, d outgoing.
  void flow_gradients(const Segment& s, const A* after) const {
    A *sink = s.w.x[0], *source = s.w.x[1], *in = number(s, kDIncoming), *out = number(s, kDOutgoing);
    conserved_gradients(s, sink, source);
    std::memcpy(s.w.vectors, after, 2 * ld_ * sizeof(A));
    suffix_dots<A>(s.w.sinks, s.w.sources, ld_, s.n, sink, source, rows_.eps(), s.w.vectors, s.w.vectors + ld_, in,
                   out);
    const A* dots = number(s, kDot);
    for (int64_t i = 0; i < s.n; ++i) {
      const A per_in = 1 / s.incoming()[i], per_out = 1 / s.outgoing()[i];
      in[i] = -(dots[i] + in[i] * s.position(i) * per_in) * per_in;
      out[i] = -out[i] * s.position(i) * per_out * per_out;
    }
  }

  void sum_flows(const Segment& s, A* added) const {
    sum_with_eps(s, number(s, kDIncoming), number(s, kDOutgoing), added);
  }

  // dq and dk. `after`: alpha, beta, kappa, theta; `added`: what the segment adds to g (x) sink.
  void write_rows(const Segment& s, const A* before, const A* after, const A* after_product, A* added) const {
    Scratch& w = s.w;
    Product& x = w.wide;
    A* a = w.x[0];
    allocations(s, a);
    const Workspace<A> before_local(wide_);
    std::memset(before_local.get(), 0, wide_ * sizeof(A));
    for_chunks(s, false, [&](int64_t first, int64_t n) {
      for (int64_t i = 0; i < n; ++i) gradient_row(s, first + i, a, x.a + i * x.ld_in);
      x.set_queries(n);
      x.set_state(before + 4 * ld_, before_local.get());
      load_values(s, first, n);
      x.multiply(n);
      std::memcpy(w.dsinks + first * ld_, x.out, n * ld_ * sizeof(A));
      x.update(before_local.get());
    });
    std::memset(added, 0, wide_ * sizeof(A));
    for_chunks(s, true, [&](int64_t first, int64_t n) {
      for (int64_t i = 0; i < n; ++i) value_row(s, first + n - 1 - i, x.a + i * x.ld_in);
      x.set_queries(n);
      x.set_state(after_product, added);
      load_wide(s, a, first, n);
      x.multiply(n);
      for (int64_t i = 0; i < n; ++i) copy_row(x.out + i * ld_, w.dsources + (first + n - 1 - i) * ld_);
      x.update(added);
    });
    const FlowWeights<A> weights{w.x[1], w.x[2], number(s, kDIncoming), number(s, kDOutgoing), w.x[3], w.x[4]};
    conserved_gradients(s, weights.conserved_sink, weights.conserved_source);
    normalisers(s, weights.per_incoming, weights.per_outgoing);
    std::memcpy(w.vectors, after, 4 * ld_ * sizeof(A));
    add_suffix_sums<A>(w.sinks, w.sources, ld_, s.n, weights, rows_.eps(), w.vectors, w.dsinks, w.dsources);
    std::memcpy(w.vectors, before, 4 * ld_ * sizeof(A));
    add_prefix_sums<A>(w.sinks, w.sources, ld_, s.n, weights, rows_.eps(), w.vectors, w.dsinks, w.dsources);
    for (int64_t i = 0; i < s.n; ++i) {
      store_logistic_gradient(w.sinks + i * ld_, w.dsinks + i * ld_, ld_, p_.dim, result(b_.dq, s, i));
      store_logistic_gradient(w.sources + i * ld_, w.dsources + i * ld_, ld_, p_.dim, result(b_.dk, s, i));
    }
  }

 private:
  // Numbers by token that passes leave to later ones.
  enum Number { kDot, kDSource, kDIncoming, kDOutgoing, kNumbers };

  const FlowBackwardParams& b_;
  const FlowParams& p_;
  const Rows rows_;
  const int64_t ld_, ld_v_;
  const Workspace<A> numbers_;
  int64_t tall_, wide_, scratch_bytes_;
  int64_t before_size_;  // of the sums before: four vectors, and of x (x) source
  int64_t after_size_;   // of those after: sink (x) g, and g (x) sink, with g = a / incoming dout

  struct Scratch {
    Product tall;  // inner D, outer Dv
    Product wide;  // inner Dv, outer D
    A *sinks, *sources, *dsinks, *dsources, *vectors;
    A* x[8];  // numbers by token
    Scratch(const FlowCausalPasses& f, Carve& c)
        : tall(f.p_.dim, f.p_.dim_v, c), wide(f.p_.dim_v, f.p_.dim, c), sinks(c.take<A>(f.rows_.segment * f.ld_)),
          sources(c.take<A>(f.rows_.segment * f.ld_)), dsinks(c.take<A>(f.rows_.segment * f.ld_)),
          dsources(c.take<A>(f.rows_.segment * f.ld_)), vectors(c.take<A>(4 * f.ld_)) {
      for (A*& numbers : x) numbers = c.take<A>(f.rows_.segment);
    }
  };

  A* number(const Segment& s, Number which) const {
    const int64_t row = s.tokens.batch * p_.heads + rows_.head(s.g);
    return numbers_.get() + (row * kNumbers + which) * p_.tq + s.tokens.first + s.begin;
  }
  int64_t token(const Segment& s, int64_t i) const { return s.tokens.at(s.begin + i); }
  In* result(const View4& v, const Segment& s, int64_t i) const {
    return row_at<In>(v, s.tokens.batch, rows_.head(s.g), token(s, i));
  }
  const In* dout(const Segment& s, int64_t i) const { return result(b_.dout, s, i); }

  // fn(first, n) for the chunks of a segment, last first if `reverse`.
  template <class F> static void for_chunks(const Segment& s, bool reverse, F&& fn) {
    const int64_t chunks = (s.n + kChunk - 1) / kChunk;
    for (int64_t i = 0; i < chunks; ++i) {
      const int64_t first = (reverse ? chunks - 1 - i : i) * kChunk;
      fn(first, min_count(kChunk, s.n - first));
    }
  }

  // ---- rows of the products ----------------------------------------------------------------------------------------

  // Row `i` of a segment: g = a / incoming dout, x = weight v. `a` holds sigmoid(conserved).
  void gradient_row(const Segment& s, int64_t i, const A* a, A* to) const {
    const A factor = a[i] / s.incoming()[i];
    map_row(dout(s, i), p_.dim_v, to, ld_v_, [factor](vec<A> x) { return factor * x; });
  }
  void value_row(const Segment& s, int64_t i, A* to) const {
    rows_.load_weighted_value(s.tokens, s.g, s.begin + i, s.weight()[i], to);
  }
  void copy_row(const A* from, A* to) const { std::memcpy(to, from, ld_ * sizeof(A)); }

  void allocations(const Segment& s, A* a) const { sigmoid_block(s.conserved_sink(), s.n, A{1}, a); }

  // x, source as keys and values of d sink.
  void load_values(const Segment& s, int64_t first, int64_t n) const {
    Product& x = s.w.wide;
    for (int64_t i = 0; i < n; ++i) {
      value_row(s, first + i, x.b + i * x.ld_in);
      copy_row(s.w.sources + (first + i) * ld_, x.c + i * x.ld_out);
    }
    x.set_keys(n);
  }
  // sink, g as keys and values of x's gradient; then g, sink as those of d source. Last token first.
  void load_tall(const Segment& s, const A* a, int64_t first, int64_t n) const {
    Product& x = s.w.tall;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = first + n - 1 - i;
      copy_row(s.w.sinks + at * ld_, x.b + i * x.ld_in);
      gradient_row(s, at, a, x.c + i * x.ld_out);
    }
    x.set_keys(n);
  }
  void load_wide(const Segment& s, const A* a, int64_t first, int64_t n) const {
    Product& x = s.w.wide;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = first + n - 1 - i;
      gradient_row(s, at, a, x.b + i * x.ld_in);
      copy_row(s.w.sinks + at * ld_, x.c + i * x.ld_out);
    }
    x.set_keys(n);
  }

  // t / incoming, t / outgoing
  void normalisers(const Segment& s, A* in, A* out) const {
    for (int64_t i = 0; i < s.n; ++i) {
      in[i] = s.position(i) / s.incoming()[i];
      out[i] = s.position(i) / s.outgoing()[i];
    }
  }

  // Gradients of the conserved flows / t.
  void conserved_gradients(const Segment& s, A* sink, A* source) const {
    allocations(s, sink);
    const A *dots = number(s, kDot), *d = number(s, kDSource);
    for (int64_t i = 0; i < s.n; ++i) {
      sink[i] = dots[i] * (1 - sink[i]) / s.position(i);
      source[i] = d[i] / s.position(i);
    }
  }

  // Weighted sums of sink + eps and source + eps.
  void sum_with_eps(const Segment& s, const A* of_sinks, const A* of_sources, A* added) const {
    std::memset(added, 0, 2 * ld_ * sizeof(A));
    const auto sum = [&](const A* rows, const A* w, A* to) {
      add_block_rows<A>(rows, ld_, s.n, w, to);
      double total = 0;
      for (int64_t i = 0; i < s.n; ++i) total += w[i];
      for (int64_t f = 0; f < ld_; ++f) to[f] += static_cast<A>(rows_.eps() * total);
    };
    sum(s.w.sinks, of_sinks, added);
    sum(s.w.sources, of_sources, added + ld_);
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
