// Flow attention backward, every sink facing every source: the forward's sums in reverse order. With h_i = dout_i .
// out_i and a_i = sigmoid(conserved_i n / m), the gradients of the scalars are
//   d conserved_i = h_i (1 - a_i) n / m                  d weight_j = v_j . dx_j,  x_j = weight_j v_j
//   d conserved_j = weight_j (d weight_j - mean of weight d weight), 0 where it was cut
//   d incoming_i  = -(h_i + sink_i . d sink_flows / incoming_i) / incoming_i
//   d outgoing_j  = -(source_j . d source_flows) / outgoing_j^2
#pragma once

#include "cpu/flow_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> class FlowBackward {
  using Rows = FlowRows<In>;
  using T = typename Rows::T;
  using A = typename Rows::A;
  using Product = ScanProduct<T>;

 public:
  explicit FlowBackward(const FlowBackwardParams& params)
      : b_(params), p_(params.forward), rows_(p_), ld_(rows_.ld), ld_v_(rows_.ld_v),
        grid_(rows_.groups(), rows_.segment,
              [this](int64_t g) {
                const int64_t n = rows_.queries(g).count, m = rows_.keys(g).count;
                return n == 0 || m == 0 ? 0 : n > m ? n : m;
              }),
        vectors_(rows_.groups() * kVectors * ld_), products_(rows_.groups() * 3 * ld_ * rows_.ld_v),
        by_sink_(p_.batch * p_.heads * p_.tq), by_source_(p_.batch * p_.heads * p_.tk) {
    Carve probe{nullptr};
    const Scratch w(*this, probe);
    scratch_bytes_ = probe.used;
    tall_ = w.tall.state_size();
    wide_ = w.wide.state_size();
  }

  void run() {
    const int by_group = grid_.by_group(0.1) && !p_.head_softmax ? kAnyWorkers : 0;
    const Pass product{tall_ + ld_, [this](int64_t g, int64_t i, A* added, int) { sum_sinks(g, i, added); },
                       [this](int64_t g, const A* total) { keep_product(g, total); }};
    const Pass weights{Lanes<A>::n, [this](int64_t g, int64_t i, A* added, int) { weight_gradients(g, i, added); },
                       [this](int64_t g, const A* total) { *vector(g, kMeanWeight) = total[0]; }};
    const Pass sources{2 * ld_, [this](int64_t g, int64_t i, A* added, int) { sum_sources(g, i, added); },
                       [this](int64_t g, const A* total) {
                         std::memcpy(vector(g, kSinkFlows), total, ld_ * sizeof(A));
                         std::memcpy(vector(g, kSinks), total + ld_, ld_ * sizeof(A));
                       }};
    const Pass sinks{ld_, [this](int64_t g, int64_t i, A* added, int) { sum_incoming(g, i, added); },
                     [this](int64_t g, const A* total) { std::memcpy(vector(g, kSources), total, ld_ * sizeof(A)); }};
    const Pass rows{0, [this](int64_t g, int64_t i, A*, int) { write_rows(g, i); }, [](int64_t, const A*) {}};
    if (p_.head_softmax) {
      run_passes<A>(grid_, 0, product, weights);
      means_over_heads();
      run_passes<A>(grid_, 0, sources, sinks, rows);
    } else {
      run_passes<A>(grid_, by_group, product, weights, sources, sinks, rows);
    }
    zero_dropped();
  }

 private:
  // Gradients of the four sums of the forward (in its order), the mean of weight d weight, and the four sums + eps.
  enum Vector {
    kSources,
    kSinks,
    kSourceFlows,
    kSinkFlows,
    kMeanWeight,
    kSourcesEps,
    kSinksEps,
    kSourceFlowsEps,
    kSinkFlowsEps,
    kVectors
  };

  const FlowBackwardParams& b_;
  const FlowParams& p_;
  const Rows rows_;
  const int64_t ld_, ld_v_;
  const SegmentGrid grid_;
  const Workspace<A> vectors_, products_;
  const Workspace<A> by_sink_, by_source_;  // h_i; d weight_j, then d conserved_j
  int64_t tall_, wide_, scratch_bytes_;

  struct Scratch {
    Product tall;  // inner D, outer Dv
    Product wide;  // inner Dv, outer D
    A *block, *x, *y, *z;
    Scratch(const FlowBackward& f, Carve& c)
        : tall(f.p_.dim, f.p_.dim_v, c), wide(f.p_.dim_v, f.p_.dim, c), block(c.take<A>(kChunk * f.ld_)),
          x(c.take<A>(kChunk)), y(c.take<A>(kChunk)), z(c.take<A>(kChunk)) {}
  };

  template <class F> void with_scratch(F&& fn) const {
    Carve c{static_cast<char*>(thread_scratch(scratch_bytes_))};
    Scratch w(*this, c);
    fn(w);
  }

  A* vector(int64_t g, Vector which) const { return vectors_.get() + (g * kVectors + which) * ld_; }
  // d product [D][ld_v]; its transpose and that of product, [Dv][ld].
  A* dproduct(int64_t g) const { return products_.get() + g * 3 * ld_ * ld_v_; }
  A* dproduct_t(int64_t g) const { return dproduct(g) + ld_ * ld_v_; }
  A* product_t(int64_t g) const { return dproduct(g) + 2 * ld_ * ld_v_; }
  A* h(const Tokens& t, int64_t g, int64_t i) const {
    return by_sink_.get() + (t.batch * p_.heads + rows_.head(g)) * p_.tq + t.first + i;
  }
  A* by_source(const Tokens& t, int64_t g, int64_t i) const {
    return by_source_.get() + (t.batch * p_.heads + rows_.head(g)) * p_.tk + t.first + i;
  }

  template <class F> void for_blocks(const Tokens& t, int64_t segment, F&& fn) const {
    in_segment(t.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kChunk) fn(first, min_count(kChunk, end - first));
    });
  }

  A ratio(int64_t g) const {  // n / m
    return static_cast<A>(static_cast<double>(rows_.queries(g).count) / rows_.keys(g).count);
  }

  // a_i into `a`
  void allocations(const Tokens& t, int64_t g, int64_t first, int64_t n, A* a) const {
    sigmoid_block(rows_.conserved_sink(t, g, first), n, ratio(g), a);
  }

  // a_i / incoming_i dout_i
  void load_gradient(const Tokens& t, int64_t g, int64_t first, int64_t n, const A* a, A* to) const {
    const A* in = rows_.incoming(t, g, first);
    for (int64_t i = 0; i < n; ++i) {
      const A factor = a[i] / in[i];
      map_row(row_at<const In>(b_.dout, t.batch, rows_.head(g), t.at(first + i)), p_.dim_v, to + i * ld_v_, ld_v_,
              [factor](vec<A> x) { return factor * x; });
    }
  }

  // sum_i weight_i (row_i + eps), added to a sum of `dim` components.
  void add_with_eps(const A* rows, int64_t n, const A* weight, A* sum) const {
    add_block_rows<A>(rows, ld_, n, weight, sum);
    A total = 0;
    for (int64_t i = 0; i < n; ++i) total += weight[i];
    for (int64_t x = 0; x < p_.dim; ++x) sum[x] += rows_.eps() * total;
  }

  // ---- passes ------------------------------------------------------------------------------------------------------

  // h; added: d product, d source_flows.
  void sum_sinks(int64_t g, int64_t segment, A* added) const {
    with_scratch([&](Scratch& w) {
      const Tokens t = rows_.queries(g);
      std::memset(added, 0, (tall_ + ld_) * sizeof(A));
      Product& x = w.tall;
      for_blocks(t, segment, [&](int64_t first, int64_t n) {
        rows_.load_sinks(t, g, first, n, x.b);
        allocations(t, g, first, n, w.x);
        load_gradient(t, g, first, n, w.x, x.c);
        A* dots = h(t, g, first);
        for (int64_t i = 0; i < n; ++i) {
          const int64_t token = t.at(first + i);
          dots[i] = dot_elements_as<A>(row_at<const In>(b_.dout, t.batch, rows_.head(g), token),
                                       row_at<const In>(p_.out, t.batch, rows_.head(g), token), p_.dim_v);
          w.y[i] = dots[i] * (1 - w.x[i]) * ratio(g);
        }
        add_with_eps(x.b, n, w.y, added + tall_);
        x.set_keys(n);
        x.update(added);
      });
    });
  }

  void keep_product(int64_t g, const A* total) const {
    std::memcpy(dproduct(g), total, tall_ * sizeof(A));
    std::memcpy(vector(g, kSourceFlows), total + tall_, ld_ * sizeof(A));
    std::memset(dproduct_t(g), 0, wide_ * sizeof(A));
    std::memset(product_t(g), 0, wide_ * sizeof(A));
    const A* product = static_cast<const A*>(p_.product) + g * p_.dim * p_.dim_v;
    for (int64_t f = 0; f < p_.dim; ++f) {
      for (int64_t x = 0; x < p_.dim_v; ++x) {
        dproduct_t(g)[x * ld_ + f] = total[f * ld_v_ + x];
        product_t(g)[x * ld_ + f] = product[f * p_.dim_v + x];
      }
    }
    for (int i = 0; i < 4; ++i) {
      const A* sum = static_cast<const A*>(p_.sums) + (g * 4 + i) * p_.dim;
      A* to = vector(g, static_cast<Vector>(kSourcesEps + i));
      for (int64_t x = 0; x < ld_; ++x) to[x] = x < p_.dim ? sum[x] + rows_.eps() : A{0};
    }
  }

  // dv and d weight; added: sum of weight d weight / m.
  void weight_gradients(int64_t g, int64_t segment, A* added) const {
    with_scratch([&](Scratch& w) {
      const Tokens t = rows_.keys(g);
      Product& x = w.tall;
      x.set_state(dproduct(g), nullptr);
      double sum = 0;
      for_blocks(t, segment, [&](int64_t first, int64_t n) {
        rows_.load_sources(t, g, first, n, x.a);
        x.apply_state(n);
        const A* weight = rows_.weight(t, g, first);
        A* dweight = by_source(t, g, first);
        for (int64_t i = 0; i < n; ++i) {
          const A* dx = x.out + i * x.ld_out;
          dweight[i] = dot_elements_as<A>(dx, rows_.v_row(t, g, first + i), p_.dim_v);
          sum += static_cast<double>(weight[i]) * dweight[i];
          store_scaled_row(row_at<In>(b_.dv, t.batch, rows_.head(g), t.at(first + i)), weight[i], dx, p_.dim_v);
        }
      });
      std::memset(added, 0, Lanes<A>::n * sizeof(A));
      added[0] = static_cast<A>(sum / t.count);
    });
  }

  // d conserved_j in the place of d weight_j, where sources compete over heads.
  void means_over_heads() const {
    parallel_items(p_.sequences, [this](int64_t s, int) {
      const Tokens t = rows_.keys(s * p_.heads);
      if (rows_.queries(s * p_.heads).count == 0) return;
      for (int64_t j = 0; j < t.count; ++j) {
        A mean = 0;
        for (int64_t i = 0; i < p_.heads; ++i) {
          const int64_t g = s * p_.heads + i;
          mean += *rows_.weight(t, g, j) * *by_source(t, g, j);
        }
        for (int64_t i = 0; i < p_.heads; ++i) *by_source(t, s * p_.heads + i, j) -= mean / t.count;
      }
    });
  }

  // d conserved_j; added: d sink_flows, d sinks.
  void sum_sources(int64_t g, int64_t segment, A* added) const {
    with_scratch([&](Scratch& w) {
      const Tokens t = rows_.keys(g);
      std::memset(added, 0, 2 * ld_ * sizeof(A));
      const A mean = p_.head_softmax ? A{0} : *vector(g, kMeanWeight);
      const A factor = p_.source_norm ? 1 / ratio(g) : A{1};
      for_blocks(t, segment, [&](int64_t first, int64_t n) {
        rows_.load_sources(t, g, first, n, w.block);
        const A *flow = rows_.conserved_source(t, g, first), *weight = rows_.weight(t, g, first);
        A* d = by_source(t, g, first);
        for (int64_t i = 0; i < n; ++i) d[i] = weight[i] * (d[i] - mean) * cut_slope(flow[i], rows_.clamp()) * factor;
        add_with_eps(w.block, n, d, added);
        outgoing_gradients(t, g, first, n, w.block, w.x);
        add_with_eps(w.block, n, w.x, added + ld_);
      });
    });
  }

  void outgoing_gradients(const Tokens& t, int64_t g, int64_t first, int64_t n, const A* rows, A* to) const {
    const A* out = rows_.outgoing(t, g, first);
    dot_block_rows(rows, ld_, n, vector(g, kSourceFlows), to);
    for (int64_t i = 0; i < n; ++i) to[i] = -to[i] / (out[i] * out[i]);
  }

  void incoming_gradients(const Tokens& t, int64_t g, int64_t first, int64_t n, const A* rows, A* to) const {
    const A *in = rows_.incoming(t, g, first), *dots = h(t, g, first);
    dot_block_rows(rows, ld_, n, vector(g, kSinkFlows), to);
    for (int64_t i = 0; i < n; ++i) to[i] = -(dots[i] + to[i] / in[i]) / in[i];
  }

  // added: d sources.
  void sum_incoming(int64_t g, int64_t segment, A* added) const {
    with_scratch([&](Scratch& w) {
      const Tokens t = rows_.queries(g);
      std::memset(added, 0, ld_ * sizeof(A));
      for_blocks(t, segment, [&](int64_t first, int64_t n) {
        rows_.load_sinks(t, g, first, n, w.block);
        incoming_gradients(t, g, first, n, w.block, w.x);
        add_with_eps(w.block, n, w.x, added);
      });
    });
  }

  void write_rows(int64_t g, int64_t segment) const {
    with_scratch([&](Scratch& w) {
      write_sinks(w, g, segment);
      write_sources(w, g, segment);
    });
  }

  void write_sinks(Scratch& w, int64_t g, int64_t segment) const {
    const Tokens t = rows_.queries(g);
    Product& x = w.wide;
    x.set_state(product_t(g), nullptr);
    for_blocks(t, segment, [&](int64_t first, int64_t n) {
      rows_.load_sinks(t, g, first, n, w.block);
      allocations(t, g, first, n, w.x);
      load_gradient(t, g, first, n, w.x, x.a);
      x.apply_state(n);
      incoming_gradients(t, g, first, n, w.block, w.y);
      const A *in = rows_.incoming(t, g, first), *dots = h(t, g, first);
      for (int64_t i = 0; i < n; ++i) {
        A* d = x.out + i * x.ld_out;
        add_scaled_row(d, dots[i] * (1 - w.x[i]) * ratio(g), vector(g, kSourceFlowsEps), ld_);
        add_scaled_row(d, 1 / in[i], vector(g, kSinkFlows), ld_);
        add_scaled_row(d, w.y[i], vector(g, kSourcesEps), ld_);
        add_row(d, vector(g, kSinks), ld_);
        store_sigmoid_gradient(w.block + i * ld_, d, row_at<In>(b_.dq, t.batch, rows_.head(g), t.at(first + i)));
      }
    });
  }

  void write_sources(Scratch& w, int64_t g, int64_t segment) const {
    const Tokens t = rows_.keys(g);
    Product& x = w.wide;
    x.set_state(dproduct_t(g), nullptr);
    for_blocks(t, segment, [&](int64_t first, int64_t n) {
      rows_.load_sources(t, g, first, n, w.block);
      const A *out = rows_.outgoing(t, g, first), *weight = rows_.weight(t, g, first);
      for (int64_t i = 0; i < n; ++i) rows_.load_weighted_value(t, g, first + i, weight[i], x.a + i * x.ld_in);
      x.apply_state(n);
      outgoing_gradients(t, g, first, n, w.block, w.y);
      const A* dflow = by_source(t, g, first);
      for (int64_t i = 0; i < n; ++i) {
        A* d = x.out + i * x.ld_out;
        add_scaled_row(d, dflow[i], vector(g, kSinkFlowsEps), ld_);
        add_scaled_row(d, 1 / out[i], vector(g, kSourceFlows), ld_);
        add_scaled_row(d, w.y[i], vector(g, kSinksEps), ld_);
        add_row(d, vector(g, kSources), ld_);
        store_sigmoid_gradient(w.block + i * ld_, d, row_at<In>(b_.dk, t.batch, rows_.head(g), t.at(first + i)));
      }
    });
  }

  void store_sigmoid_gradient(const A* f, A* d, In* to) const { store_logistic_gradient(f, d, ld_, p_.dim, to); }

  // Dropped tokens, and sequences without a sink or without a source.
  void zero_dropped() const {
    const auto zero_query = [this](int64_t b, int64_t t) {
      for (int64_t h = 0; h < p_.heads; ++h) store_zero_row(row_at<In>(b_.dq, b, h, t), p_.dim);
    };
    const auto zero_key = [this](int64_t b, int64_t t) {
      for (int64_t h = 0; h < p_.heads; ++h) {
        store_zero_row(row_at<In>(b_.dk, b, h, t), p_.dim);
        store_zero_row(row_at<In>(b_.dv, b, h, t), p_.dim_v);
      }
    };
    rows_.query_lists.for_dropped(zero_query);
    rows_.key_lists.for_dropped(zero_key);
    for (int64_t g = 0; g < rows_.groups(); g += p_.heads) {
      const Tokens q = rows_.queries(g), k = rows_.keys(g);
      for (int64_t i = 0; k.count == 0 && i < q.count; ++i) zero_query(q.batch, q.at(i));
      for (int64_t i = 0; q.count == 0 && i < k.count; ++i) zero_key(k.batch, k.at(i));
    }
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
