// Causal flow attention forward. Four running sums, each needing the one before: sources and sinks; their normalised
// flows; the mass of the prefix softmax; the matrix product. Each is a two-level scan over segments.
#pragma once

#include "cpu/flow_segment.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// The running sums before a segment, or what a segment adds to them.
template <class A> struct FlowSums {
  A* flows;         // [2][ld]: sources, sinks
  A* normalised;    // [2][ld]: t source / outgoing, t sink / incoming
  SoftmaxSum mass;  // of exp(conserved_j)
  A* product;       // [D][ld_v]
};

template <class In> class FlowCausalForward {
  using Rows = FlowRows<In>;
  using T = typename Rows::T;
  using A = typename Rows::A;
  using Product = ScanProduct<T>;

 public:
  explicit FlowCausalForward(const FlowParams& params) : p_(params), rows_(params), ld_(rows_.ld) {
    Carve probe{nullptr};
    const Scratch w(*this, probe);
    scratch_bytes_ = probe.used;
    product_size_ = w.product.state_size();
  }

  void run() {
    const SegmentGrid grid(rows_.groups(), rows_.segment, [this](int64_t g) { return rows_.queries(g).count; });
    if (grid.by_group(0.5)) run_by_group(grid);
    else run_by_segment(grid);
    rows_.query_lists.for_dropped([this](int64_t b, int64_t t) {
      for (int64_t h = 0; h < p_.heads; ++h) store_zero_row(row_at<In>(p_.out, b, h, t), p_.dim_v);
    });
  }

 private:
  const FlowParams& p_;
  const Rows rows_;
  const int64_t ld_;
  int64_t product_size_, scratch_bytes_;

  struct Scratch {
    Product product;
    A *sinks, *sources;  // rows of a segment
    A *vectors, *x, *y;  // running vectors; numbers per token
    Scratch(const FlowCausalForward& f, Carve& c)
        : product(f.p_.dim, f.p_.dim_v, c), sinks(c.take<A>(f.rows_.segment * f.ld_)),
          sources(c.take<A>(f.rows_.segment * f.ld_)), vectors(c.take<A>(2 * f.ld_)), x(c.take<A>(f.rows_.segment)),
          y(c.take<A>(f.rows_.segment)) {}
  };

  using Segment = FlowSegment<In, Scratch>;

  template <class F> void with_segment(int64_t g, int64_t segment, F&& fn) const {
    scan::with_segment<Scratch>(*this, rows_, scratch_bytes_, g, segment, fn);
  }

  // ---- what a segment adds -----------------------------------------------------------------------------------------

  void sum_flows(const Segment& s, A* added) const {
    std::memset(added, 0, 2 * ld_ * sizeof(A));
    add_block_rows<A>(s.w.sources, ld_, s.n, nullptr, added);
    add_block_rows<A>(s.w.sinks, ld_, s.n, nullptr, added + ld_);
  }

  // t / flow at every token.
  void normalisers(const Segment& s, const A* flow, A* to) const {
    for (int64_t i = 0; i < s.n; ++i) to[i] = s.position(i) / flow[i];
  }

  void sum_normalised(const Segment& s, A* added) const {
    std::memset(added, 0, 2 * ld_ * sizeof(A));
    normalisers(s, s.outgoing(), s.w.x);
    normalisers(s, s.incoming(), s.w.y);
    add_block_rows<A>(s.w.sources, ld_, s.n, s.w.x, added);
    add_block_rows<A>(s.w.sinks, ld_, s.n, s.w.y, added + ld_);
  }

  SoftmaxSum sum_mass(const Segment& s) const {
    const A* flow = s.conserved_source();
    A top = -std::numeric_limits<A>::infinity();
    for (int64_t i = 0; i < s.n; ++i) {
      s.w.x[i] = cut_flow(flow[i], rows_.clamp());
      top = s.w.x[i] > top ? s.w.x[i] : top;
    }
    exp_block(s.w.x, s.n, top, s.w.y);
    double sum = 0;
    for (int64_t i = 0; i < s.n; ++i) sum += s.w.y[i];
    return {static_cast<double>(top), sum};
  }

  template <class F> void for_chunks(const Segment& s, F&& fn) const {
    Product& x = s.w.product;
    const A* weights = s.weight();
    for (int64_t first = 0; first < s.n; first += kChunk) {
      const int64_t n = min_count(kChunk, s.n - first);
      x.point_keys(s.w.sources + first * ld_);
      for (int64_t i = 0; i < n; ++i) {
        rows_.load_weighted_value(s.tokens, s.g, s.begin + first + i, weights[first + i], x.c + i * x.ld_out);
      }
      x.set_keys(n);
      fn(first, n);
    }
  }

  void sum_product(const Segment& s, A* added) const {
    std::memset(added, 0, product_size_ * sizeof(A));
    for_chunks(s, [&](int64_t, int64_t) { s.w.product.update(added); });
  }

  // ---- results of a segment, given the sums before it --------------------------------------------------------------

  void first_flows(const Segment& s, const A* before) const {
    std::memcpy(s.w.vectors, before, 2 * ld_ * sizeof(A));
    A *in = s.incoming(), *out = s.outgoing();
    prefix_dots<A>(s.w.sinks, s.w.sources, ld_, p_.dim, s.n, nullptr, nullptr, rows_.eps(), s.w.vectors + ld_,
                   s.w.vectors, in, out);
    for (int64_t i = 0; i < s.n; ++i) {
      in[i] += rows_.outside();
      out[i] += rows_.outside();
    }
  }

  void conserved_flows(const Segment& s, const A* before) const {
    std::memcpy(s.w.vectors, before, 2 * ld_ * sizeof(A));
    normalisers(s, s.outgoing(), s.w.x);
    normalisers(s, s.incoming(), s.w.y);
    A *sink = s.conserved_sink(), *source = s.conserved_source();
    prefix_dots<A>(s.w.sinks, s.w.sources, ld_, p_.dim, s.n, s.w.y, s.w.x, rows_.eps(), s.w.vectors + ld_, s.w.vectors,
                   sink, source);
    for (int64_t i = 0; i < s.n; ++i) {
      const A t = s.position(i);
      sink[i] = (sink[i] + rows_.outside()) / t;
      source[i] = (source[i] + rows_.outside()) / t;
    }
  }

  // weight_t = t exp(flow_t) / sum_{j <= t} exp(flow_j), against the running maximum.
  void weights(const Segment& s, SoftmaxSum before) const {
    const A* flow = s.conserved_source();
    A *to = s.weight(), *shift = s.w.x, *decay = s.w.y;
    A top = before.sum > 0 ? static_cast<A>(before.top) : -std::numeric_limits<A>::infinity();
    double sum = before.sum;
    for (int64_t i = 0; i < s.n; ++i) {
      const A x = cut_flow(flow[i], rows_.clamp()), last = top;
      top = x > top ? x : top;
      shift[i] = x - top;
      decay[i] = last == top ? A{0} : last - top;
    }
    exp_block(shift, s.n, A{0}, shift);
    exp_block(decay, s.n, A{0}, decay);
    for (int64_t i = 0; i < s.n; ++i) {
      sum = sum * decay[i] + shift[i];
      to[i] = static_cast<A>((s.begin + i + 1) * (shift[i] / sum));
    }
  }

  void write_rows(const Segment& s, const A* before, A* added) const {
    Scratch& w = s.w;
    Product& x = w.product;
    std::memset(added, 0, product_size_ * sizeof(A));
    sigmoid_block(s.conserved_sink(), s.n, A{1}, w.x);
    const A* in = s.incoming();
    for_chunks(s, [&](int64_t first, int64_t n) {
      x.set_state(before, added);
      x.a = w.sinks + first * ld_;
      x.set_queries(n);
      x.multiply(n);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = first + i;
        In* out = row_at<In>(p_.out, s.tokens.batch, rows_.head(s.g), s.tokens.at(s.begin + at));
        store_scaled_row(out, w.x[at] / in[at], x.out + i * x.ld_out, p_.dim_v);
      }
      x.update(added);
    });
  }

  // The sums after the last token, for whoever goes on from there.
  void store_state(int64_t g, const FlowSums<A>& s) const {
    for (int i = 0; p_.sums && i < 4; ++i) {
      const A* from = i < 2 ? s.flows + i * ld_ : s.normalised + (i - 2) * ld_;
      std::memcpy(static_cast<A*>(p_.sums) + (g * 4 + i) * p_.dim, from, p_.dim * sizeof(A));
    }
    for (int64_t f = 0; p_.product && f < p_.dim; ++f) {
      std::memcpy(static_cast<A*>(p_.product) + (g * p_.dim + f) * p_.dim_v, s.product + f * rows_.ld_v,
                  p_.dim_v * sizeof(A));
    }
    const double n = static_cast<double>(rows_.queries(g).count);
    if (p_.tokens && rows_.head(g) == 0) static_cast<A*>(p_.tokens)[g / p_.heads] = static_cast<A>(n);
    if (p_.log_mean)
      static_cast<A*>(p_.log_mean)[g] = n > 0 ? static_cast<A>(s.mass.top + std::log(s.mass.sum / n)) : A{0};
  }

  // ---- the two plans -----------------------------------------------------------------------------------------------

  void run_by_group(const SegmentGrid& grid) const {
    grid.for_groups([&](int64_t g) {
      const Workspace<A> memory(2 * (4 * ld_ + product_size_));
      const auto sums = [&](A* at) { return FlowSums<A>{at, at + 2 * ld_, {0, 0}, at + 4 * ld_}; };
      FlowSums<A> before = sums(memory.get()), added = sums(memory.get() + 4 * ld_ + product_size_);
      std::memset(memory.get(), 0, (4 * ld_ + product_size_) * sizeof(A));
      for (int64_t i = 0; i < grid.segments(g); ++i) {
        with_segment(g, i, [&](const Segment& s) {
          sum_flows(s, added.flows);
          first_flows(s, before.flows);
          sum_normalised(s, added.normalised);
          conserved_flows(s, before.normalised);
          added.mass = sum_mass(s);
          weights(s, before.mass);
          write_rows(s, before.product, added.product);
        });
        add_row(before.flows, added.flows, 2 * ld_);
        add_row(before.normalised, added.normalised, 2 * ld_);
        before.mass = merge_sums(before.mass, added.mass);
        add_row(before.product, added.product, product_size_);
      }
      store_state(g, before);
    });
  }

  void run_by_segment(const SegmentGrid& grid) const {
    // As in two_level_scan: slot i + 1 takes what segment i adds, and becomes the sum before segment i + 1.
    const auto slots = grid.total() + grid.groups();
    const Workspace<A> flows(slots * 2 * ld_), normalised(slots * 2 * ld_), products(slots * product_size_);
    std::vector<SoftmaxSum> masses(slots);
    const auto slot = [&](int64_t g, int64_t i) { return grid.item(g, i) + g; };
    const auto accumulate = [&](A* at, int64_t size) {
      grid.for_groups([&](int64_t g) {
        std::memset(at + slot(g, 0) * size, 0, size * sizeof(A));
        for (int64_t i = 0; i < grid.segments(g); ++i)
          add_row(at + slot(g, i + 1) * size, at + slot(g, i) * size, size);
      });
    };
    const auto each = [&](auto&& fn) {
      grid.for_segments(
          [&](int64_t g, int64_t i) { with_segment(g, i, [&](const Segment& s) { fn(s, slot(g, i)); }); });
    };
    each([&](const Segment& s, int64_t i) { sum_flows(s, flows.get() + (i + 1) * 2 * ld_); });
    accumulate(flows.get(), 2 * ld_);
    each([&](const Segment& s, int64_t i) {
      first_flows(s, flows.get() + i * 2 * ld_);
      sum_normalised(s, normalised.get() + (i + 1) * 2 * ld_);
    });
    accumulate(normalised.get(), 2 * ld_);
    each([&](const Segment& s, int64_t i) {
      conserved_flows(s, normalised.get() + i * 2 * ld_);
      masses[i + 1] = sum_mass(s);
    });
    grid.for_groups([&](int64_t g) {
      masses[slot(g, 0)] = {0, 0};
      for (int64_t i = 0; i < grid.segments(g); ++i) {
        masses[slot(g, i + 1)] = merge_sums(masses[slot(g, i)], masses[slot(g, i + 1)]);
      }
    });
    each([&](const Segment& s, int64_t i) {
      weights(s, masses[i]);
      sum_product(s, products.get() + (i + 1) * product_size_);
    });
    accumulate(products.get(), product_size_);
    each([&](const Segment& s, int64_t i) {
      const Workspace<A> added(product_size_);
      write_rows(s, products.get() + i * product_size_, added.get());
    });
    grid.for_groups([&](int64_t g) {
      const int64_t i = slot(g, grid.segments(g));
      store_state(g, {flows.get() + i * 2 * ld_, normalised.get() + i * 2 * ld_, masses[i],
                      products.get() + i * product_size_});
    });
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
