// Flow attention forward, every sink facing every source. Three sums over all tokens must be complete before the next
// can start; the matrix product follows.
#pragma once

#include "cpu/flow_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// Rows of a group that fit are kept between passes by the thread that owns the group.
constexpr int64_t kCacheBytes = 8 << 20;

template <class In> class FlowForward {
  using Rows = FlowRows<In>;
  using T = typename Rows::T;
  using A = typename Rows::A;
  using Product = ScanProduct<T>;

 public:
  explicit FlowForward(const FlowParams& params)
      : p_(params), rows_(params), ld_(rows_.ld),
        grid_(rows_.groups(), rows_.segment,
              [this](int64_t g) {
                const int64_t n = rows_.queries(g).count, m = rows_.keys(g).count;
                return n > m ? n : m;
              }),
        vectors_(rows_.groups() * kVectors * ld_), softmax_(grid_.total()), total_softmax_(rows_.groups()) {
    Carve probe{nullptr};
    const Product x(p_.dim, p_.dim_v, probe);
    state_size_ = x.state_size();
    probe.take<A>(kChunk * ld_);
    probe.take<A>(kChunk);
    scratch_bytes_ = probe.used;
    products_ = std::make_unique<Workspace<A>>(rows_.groups() * state_size_);
  }

  void run() {
    const bool by_group = grid_.by_group(0.1);
    make_cache(by_group);
    const Pass sums{2 * ld_, [this](int64_t g, int64_t i, A* added, int w) { sum_flows(g, i, added, w); },
                    [this](int64_t g, const A* total) { keep_vectors(g, kSources, total); }};
    const Pass flows{2 * ld_, [this](int64_t g, int64_t i, A* added, int w) { first_flows(g, i, added, w); },
                     [this](int64_t g, const A* total) { keep_vectors(g, kSourceFlows, total); }};
    const Pass conserved{0, [this](int64_t g, int64_t i, A*, int w) { conserved_flows(g, i, w); },
                         [this](int64_t g, const A*) { set_softmax(g); }};
    const Pass product{state_size_, [this](int64_t g, int64_t i, A* added, int w) { sum_product(g, i, added, w); },
                       [this](int64_t g, const A* total) { keep_product(g, total); }};
    const Pass out{0, [this](int64_t g, int64_t i, A*, int w) { write_rows(g, i, w); }, [](int64_t, const A*) {}};
    if (p_.head_softmax) {
      run_passes<A>(grid_, false, sums, flows, conserved);
      softmax_over_heads();
      run_passes<A>(grid_, false, product, out);
    } else {
      run_passes<A>(grid_, by_group, sums, flows, conserved, product, out);
    }
    rows_.query_lists.for_dropped([this](int64_t b, int64_t t) {
      for (int64_t h = 0; h < p_.heads; ++h) store_zero_row(row_at<In>(p_.out, b, h, t), p_.dim_v);
    });
  }

 private:
  // Per group, with eps added where they enter a dot: sums of sources and sinks, and of their normalised flows.
  enum Vector { kSources, kSinks, kSourceFlows, kSinkFlows, kVectors };

  const FlowParams& p_;
  const Rows rows_;
  const int64_t ld_;
  const SegmentGrid grid_;
  const Workspace<A> vectors_;
  std::vector<SoftmaxSum> softmax_, total_softmax_;
  std::unique_ptr<Workspace<A>> products_, cache_;
  int64_t state_size_, scratch_bytes_;

  A* vector(int64_t g, Vector which) const { return vectors_.get() + (g * kVectors + which) * ld_; }

  struct Scratch {
    Carve carve;
    A *block, *weight;
    explicit Scratch(const FlowForward& f)
        : carve{static_cast<char*>(thread_scratch(f.scratch_bytes_))}, block(carve.take<A>(kChunk * f.ld_)),
          weight(carve.take<A>(kChunk)) {}
  };

  // Where the thread that owns a group keeps its rows, sources first; null where it doesn't.
  void make_cache(bool by_group) {
    const int64_t size = (p_.tq + p_.tk) * ld_;
    if (!by_group || p_.head_softmax || size * static_cast<int64_t>(sizeof(A)) > kCacheBytes) return;
    cache_ = std::make_unique<Workspace<A>>(min_count(parallel_threads(), rows_.groups()) * size);
  }
  A* cached_source(int worker, int64_t i) const {
    return cache_ ? cache_->get() + (worker * (p_.tq + p_.tk) + i) * ld_ : nullptr;
  }
  A* cached_sink(int worker, int64_t i) const { return cached_source(worker, p_.tk + i); }

  // fn(tokens, first, n, rows) for blocks of sources (or sinks) of a segment. `fill`: the pass that loads them.
  template <class F> void for_sources(Scratch& w, int64_t g, int64_t segment, int worker, bool fill, F&& fn) const {
    const Tokens t = rows_.keys(g);
    in_segment(t.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kChunk) {
        const int64_t n = min_count(kChunk, end - first);
        A* kept = cached_source(worker, first);
        A* block = kept ? kept : w.block;
        if (fill || !kept) rows_.load_sources(t, g, first, n, block);
        fn(t, first, n, block);
      }
    });
  }
  template <class F> void for_sinks(Scratch& w, int64_t g, int64_t segment, int worker, bool fill, F&& fn) const {
    const Tokens t = rows_.queries(g);
    in_segment(t.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kChunk) {
        const int64_t n = min_count(kChunk, end - first);
        A* kept = cached_sink(worker, first);
        A* block = kept ? kept : w.block;
        if (fill || !kept) rows_.load_sinks(t, g, first, n, block);
        fn(t, first, n, block);
      }
    });
  }

  void sum_flows(int64_t g, int64_t segment, A* added, int worker) const {
    Scratch w(*this);
    std::memset(added, 0, 2 * ld_ * sizeof(A));
    for_sources(w, g, segment, worker, true, [&](const Tokens&, int64_t, int64_t n, const A* rows) {
      add_block_rows<A>(rows, ld_, n, nullptr, added);
    });
    for_sinks(w, g, segment, worker, true, [&](const Tokens&, int64_t, int64_t n, const A* rows) {
      add_block_rows<A>(rows, ld_, n, nullptr, added + ld_);
    });
  }

  // Two totals become vectors `first` and `first + 1`, and go to the caller of the op.
  void keep_vectors(int64_t g, int first, const A* total) const {
    for (int i = 0; i < 2; ++i) {
      rows_.add_eps(total + i * ld_, vector(g, static_cast<Vector>(first + i)));
      std::memcpy(static_cast<A*>(p_.sums) + (g * kVectors + first + i) * p_.dim, total + i * ld_, p_.dim * sizeof(A));
    }
  }

  // Flow through every source and sink; added: sum of source / outgoing, sink / incoming.
  void first_flows(int64_t g, int64_t segment, A* added, int worker) const {
    Scratch w(*this);
    std::memset(added, 0, 2 * ld_ * sizeof(A));
    const auto flow = [&](const A* rows, int64_t n, const A* against, A* stat, A* sum) {
      dot_block_rows(rows, ld_, n, against, stat);
      const A rest = rows_.eps_dot(against);
      for (int64_t i = 0; i < n; ++i) {
        stat[i] += rest;
        w.weight[i] = 1 / stat[i];
      }
      add_block_rows<A>(rows, ld_, n, w.weight, sum);
    };
    for_sources(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, const A* rows) {
      flow(rows, n, vector(g, kSinks), rows_.source_stat(t, g, 0, first), added);
    });
    for_sinks(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, const A* rows) {
      flow(rows, n, vector(g, kSources), rows_.sink_stat(t, g, 0, first), added + ld_);
    });
  }

  void conserved_flows(int64_t g, int64_t segment, int worker) {
    Scratch w(*this);
    const double n_sinks = static_cast<double>(rows_.queries(g).count);
    const A factor = p_.source_norm && n_sinks > 0 ? static_cast<A>(rows_.keys(g).count / n_sinks) : A{1};
    SoftmaxSum sum{0, 0};
    for_sources(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, const A* rows) {
      A* stat = rows_.source_stat(t, g, 1, first);
      dot_block_rows(rows, ld_, n, vector(g, kSinkFlows), stat);
      const A rest = rows_.eps_dot(vector(g, kSinkFlows));
      for (int64_t i = 0; i < n; ++i) stat[i] = (stat[i] + rest) * factor;
      A top;
      cut_block(stat, n, w.weight, top);
      exp_block(w.weight, n, top, w.weight);
      double mass = 0;
      for (int64_t i = 0; i < n; ++i) mass += w.weight[i];
      sum = merge_sums(sum, {static_cast<double>(top), mass});
    });
    softmax_[grid_.item(g, segment)] = sum;
    for_sinks(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, const A* rows) {
      A* stat = rows_.sink_stat(t, g, 1, first);
      dot_block_rows(rows, ld_, n, vector(g, kSourceFlows), stat);
      const A rest = rows_.eps_dot(vector(g, kSourceFlows));
      for (int64_t i = 0; i < n; ++i) stat[i] += rest;
    });
  }

  void cut_block(const A* x, int64_t n, A* y, A& top) const {
    top = -std::numeric_limits<A>::infinity();
    for (int64_t i = 0; i < n; ++i) {
      y[i] = cut_flow(x[i], rows_.clamp());
      top = y[i] > top ? y[i] : top;
    }
  }

  void set_softmax(int64_t g) {
    SoftmaxSum total{0, 0};
    for (int64_t i = 0; i < grid_.segments(g); ++i) total = merge_sums(total, softmax_[grid_.item(g, i)]);
    total_softmax_[g] = total;
  }

  // The JAX copy's variant: at every key, a softmax over the heads.
  void softmax_over_heads() const {
    parallel_items(p_.sequences, [this](int64_t s, int) {
      const Tokens t = rows_.keys(s * p_.heads);
      std::vector<A> x(p_.heads);
      for (int64_t j = 0; j < t.count; ++j) {
        A top = -std::numeric_limits<A>::infinity(), sum = 0;
        for (int64_t h = 0; h < p_.heads; ++h) {
          x[h] = cut_flow(*rows_.source_stat(t, s * p_.heads + h, 1, j), rows_.clamp());
          top = x[h] > top ? x[h] : top;
        }
        for (A& e : x) sum += e = std::exp(e - top);
        for (int64_t h = 0; h < p_.heads; ++h) *rows_.source_stat(t, s * p_.heads + h, 2, j) = x[h] / sum * t.count;
      }
    });
  }

  void sum_product(int64_t g, int64_t segment, A* added, int worker) const {
    Scratch w(*this);
    Product x(p_.dim, p_.dim_v, w.carve);
    std::memset(added, 0, state_size_ * sizeof(A));
    const SoftmaxSum softmax = total_softmax_[g];
    for_sources(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, A* rows) {
      x.point_keys(rows);
      A* weight = rows_.source_stat(t, g, 2, first);
      if (!p_.head_softmax) {
        A top;
        cut_block(rows_.source_stat(t, g, 1, first), n, weight, top);
        exp_block(weight, n, static_cast<A>(softmax.top), weight);
        const A factor = static_cast<A>(t.count / softmax.sum);
        for (int64_t i = 0; i < n; ++i) weight[i] *= factor;
      }
      for (int64_t i = 0; i < n; ++i) rows_.load_weighted_value(t, g, first + i, weight[i], x.c + i * x.ld_out);
      x.set_keys(n);
      x.update(added);
    });
  }

  void keep_product(int64_t g, const A* total) const {
    std::memcpy(products_->get() + g * state_size_, total, state_size_ * sizeof(A));
    for (int64_t f = 0; f < p_.dim; ++f) {
      std::memcpy(static_cast<A*>(p_.product) + (g * p_.dim + f) * p_.dim_v, total + f * rows_.ld_v,
                  p_.dim_v * sizeof(A));
    }
  }

  void write_rows(int64_t g, int64_t segment, int worker) const {
    Scratch w(*this);
    Product x(p_.dim, p_.dim_v, w.carve);
    x.set_state(products_->get() + g * state_size_, nullptr);
    const int64_t n_sources = rows_.keys(g).count;
    for_sinks(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, A* rows) {
      x.a = rows;
      x.apply_state(n);
      const A* incoming = rows_.sink_stat(t, g, 0, first);
      if (n_sources > 0) {
        sigmoid_block(rows_.sink_stat(t, g, 1, first), n, static_cast<A>(static_cast<double>(t.count) / n_sources),
                      w.weight);
      }
      for (int64_t i = 0; i < n; ++i) {
        In* out = row_at<In>(p_.out, t.batch, rows_.head(g), t.at(first + i));
        if (n_sources == 0) store_zero_row(out, p_.dim_v);
        else store_scaled_row(out, w.weight[i] / incoming[i], x.out + i * x.ld_out, p_.dim_v);
      }
    });
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
