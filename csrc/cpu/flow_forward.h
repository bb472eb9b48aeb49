// Flow attention forward, every sink facing every source. Sums over all tokens must be complete before the next can
// start, and each needs one side only: of k; of q and of q over its flow; of k over its flow and of the matrix product;
// then the rows of q. So four passes read q and k twice, and v once.
#pragma once

#include "cpu/flow_rows.h"
#include "cpu/lanes.h"
#include "cpu/row_fetch.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// The thread that owns a group keeps its features between passes where they fit into the cache. Features in memory
// would be as far away as q and k are.
constexpr int64_t kCacheBytes = 8 << 20;
// exp(conserved - clamp) is far from underflow up to this clamp, so that nobody has to look for the maximum first.
constexpr double kFixedReference = 16;

template <class In> class FlowForward {
  using Rows = FlowRows<In>;
  using T = typename Rows::T;
  using A = typename Rows::A;
  using F = typename FeatureOf<T>::type;
  using Product = ScanProduct<T>;

 public:
  explicit FlowForward(const FlowParams& params)
      : p_(params), rows_(params), ld_(feature_width<T>(params.dim)), one_pass_(params.clamp <= kFixedReference),
        stream_(params.batch * params.heads * params.tq * params.dim_v * int64_t{sizeof(In)} >= pool::kStreamBytes),
        grid_(rows_.groups(), rows_.segment,
              [this](int64_t g) {
                const int64_t n = rows_.queries(g).count, m = rows_.keys(g).count;
                return n > m ? n : m;
              }),
        vectors_(rows_.groups() * kVectors * ld_), top_(grid_.total()), mass_(grid_.total()),
        reference_(rows_.groups(), rows_.clamp()) {
    Carve probe{nullptr};
    const Product x(p_.dim, p_.dim_v, probe);
    state_size_ = x.state_size();
    probe.take<F>(kChunk * ld_);
    probe.take<A>(kChunk);
    scratch_bytes_ = probe.used;
    products_ = std::make_unique<Workspace<A>>(rows_.groups() * state_size_);
  }

  void run() {
    const int by_group = grid_.by_group(0.1) ? parallel_threads() : 0;
    make_cache(by_group);
    const Pass sources{ld_, [this](int64_t g, int64_t i, A* added, int w) { sum_sources(g, i, added, w); },
                       [this](int64_t g, const A* total) { keep_vector(g, kSources, total); }};
    const Pass sinks{2 * ld_, [this](int64_t g, int64_t i, A* added, int w) { sum_sinks(g, i, added, w); },
                     [this](int64_t g, const A* total) {
                       keep_vector(g, kSinks, total);
                       keep_vector(g, kSinkFlows, total + ld_);
                     }};
    const Pass flows{ld_, [this](int64_t g, int64_t i, A* added, int w) { source_flows(g, i, added, w); },
                     [this](int64_t g, const A* total) {
                       keep_vector(g, kSourceFlows, total);
                       set_reference(g);
                     }};
    const Pass product{state_size_, [this](int64_t g, int64_t i, A* added, int w) { sum_product(g, i, added, w); },
                       [this](int64_t g, const A* total) { keep_product(g, total); }};
    const Pass both{ld_ + state_size_,
                    [this](int64_t g, int64_t i, A* added, int w) { sum_product(g, i, added + ld_, w, added); },
                    [this](int64_t g, const A* total) {
                      keep_vector(g, kSourceFlows, total);
                      keep_product(g, total + ld_);
                    }};
    const Pass out{0, [this](int64_t g, int64_t i, A*, int w) { write_rows(g, i, w); }, [](int64_t, const A*) {}};
    if (p_.head_softmax) {
      run_passes<A>(grid_, 0, sources, sinks, flows);
      softmax_over_heads();
      run_passes<A>(grid_, 0, product, out);
    } else if (one_pass_) {
      run_passes<A>(grid_, by_group, sources, sinks, both, out);
    } else {
      run_passes<A>(grid_, by_group, sources, sinks, flows, product, out);
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
  const int64_t ld_;     // a row of features
  const bool one_pass_;  // flows of sources and the product of one segment after the other
  const bool stream_;    // results are larger than the cache
  const SegmentGrid grid_;
  const Workspace<A> vectors_;
  // The sources' softmax: the largest conserved flow of each segment, their sum of exponentials, and per group what
  // was subtracted.
  std::vector<A> top_;
  std::vector<double> mass_;
  std::vector<A> reference_;
  std::unique_ptr<Workspace<A>> products_;
  std::unique_ptr<Workspace<F>> cache_;
  int64_t state_size_, scratch_bytes_;

  A* vector(int64_t g, Vector which) const { return vectors_.get() + (g * kVectors + which) * ld_; }

  struct Scratch {
    Carve carve;
    F* block;
    A* weight;
    explicit Scratch(const FlowForward& f)
        : carve{static_cast<char*>(thread_scratch(f.scratch_bytes_))}, block(carve.take<F>(kChunk * f.ld_)),
          weight(carve.take<A>(kChunk)) {}
  };

  // Where the thread that owns a group keeps its rows, sources first; null where it doesn't.
  void make_cache(int workers) {
    if (workers == 0 || p_.head_softmax) return;
    const int64_t size = (p_.tq + p_.tk) * ld_, owners = min_count(workers, rows_.groups());
    if (size * static_cast<int64_t>(sizeof(F)) > kCacheBytes) return;
    cache_ = std::make_unique<Workspace<F>>(owners * size);
  }
  F* cached_sources(int worker) const { return cache_ ? cache_->get() + worker * (p_.tq + p_.tk) * ld_ : nullptr; }
  F* cached_sinks(int worker) const { return cache_ ? cached_sources(worker) + p_.tk * ld_ : nullptr; }

  // fn(tokens, first, n, rows) for blocks of sources (or sinks) of a segment. `fill`: the pass that loads them.
  template <class Fn> void for_sources(Scratch& w, int64_t g, int64_t segment, int worker, bool fill, Fn&& fn) const {
    for_blocks(
        w, rows_.keys(g), segment, cached_sources(worker), fill,
        [&](const Tokens& t, int64_t first, int64_t n, F* to) { rows_.load_sources(t, g, first, n, to, ld_); }, fn);
  }
  template <class Fn> void for_sinks(Scratch& w, int64_t g, int64_t segment, int worker, bool fill, Fn&& fn) const {
    for_blocks(
        w, rows_.queries(g), segment, cached_sinks(worker), fill,
        [&](const Tokens& t, int64_t first, int64_t n, F* to) { rows_.load_sinks(t, g, first, n, to, ld_); }, fn);
  }
  // cached: where rows are kept between passes, or null.
  template <class Load, class Fn>
  void for_blocks(Scratch& w, const Tokens& t, int64_t segment, F* cached, bool fill, Load&& load, Fn&& fn) const {
    in_segment(t.count, rows_.segment, segment, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kChunk) {
        const int64_t n = min_count(kChunk, end - first);
        F* block = cached ? cached + first * ld_ : w.block;
        if (fill || !cached) load(t, first, n, block);
        fn(t, first, n, block);
      }
    });
  }

  // A total becomes a vector, and goes to the caller of the op.
  void keep_vector(int64_t g, Vector which, const A* total) const {
    rows_.add_eps(total, vector(g, which), ld_);
    std::memcpy(static_cast<A*>(p_.sums) + (g * kVectors + which) * p_.dim, total, p_.dim * sizeof(A));
  }

  void sum_sources(int64_t g, int64_t segment, A* added, int worker) const {
    Scratch w(*this);
    std::memset(added, 0, ld_ * sizeof(A));
    for_sources(w, g, segment, worker, true, [&](const Tokens&, int64_t, int64_t n, const F* rows) {
      add_block_rows(rows, ld_, n, static_cast<const A*>(nullptr), added);
    });
  }

  // Of sinks, and of sinks over the flow into them.
  void sum_sinks(int64_t g, int64_t segment, A* added, int worker) const {
    Scratch w(*this);
    std::memset(added, 0, 2 * ld_ * sizeof(A));
    for_sinks(w, g, segment, worker, true, [&](const Tokens& t, int64_t first, int64_t n, const F* rows) {
      add_block_rows(rows, ld_, n, static_cast<const A*>(nullptr), added);
      A* flow = rows_.incoming(t, g, first);
      dot_block_rows(rows, ld_, n, vector(g, kSources), flow);
      add_over_flow(w, rows, n, vector(g, kSources), flow, added + ld_);
    });
  }

  // flow = rows . against, of which the dot product is there; sum += rows / flow
  void add_over_flow(Scratch& w, const F* rows, int64_t n, const A* against, A* flow, A* sum) const {
    const A rest = rows_.eps_dot(against, ld_);
    for (int64_t i = 0; i < n; ++i) {
      flow[i] += rest;
      w.weight[i] = 1 / flow[i];
    }
    add_block_rows(rows, ld_, n, w.weight, sum);
  }

  // Flow out of a block of sources, and its conserved flow; sum += sources / flow.
  void flows_of_sources(Scratch& w, const Tokens& t, int64_t g, int64_t first, const F* rows, int64_t n, A* sum) const {
    A *flow = rows_.outgoing(t, g, first), *conserved = rows_.conserved_source(t, g, first);
    dot_block_rows_twice(rows, ld_, n, vector(g, kSinks), vector(g, kSinkFlows), flow, conserved);
    add_over_flow(w, rows, n, vector(g, kSinks), flow, sum);
    const double n_sinks = static_cast<double>(rows_.queries(g).count);
    const A factor = p_.source_norm && n_sinks > 0 ? static_cast<A>(rows_.keys(g).count / n_sinks) : A{1};
    const A rest = rows_.eps_dot(vector(g, kSinkFlows), ld_);
    for (int64_t i = 0; i < n; ++i) conserved[i] = (conserved[i] + rest) * factor;
  }

  void source_flows(int64_t g, int64_t segment, A* added, int worker) {
    Scratch w(*this);
    std::memset(added, 0, ld_ * sizeof(A));
    A top = -std::numeric_limits<A>::infinity();
    for_sources(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, const F* rows) {
      flows_of_sources(w, t, g, first, rows, n, added);
      const A* conserved = rows_.conserved_source(t, g, first);
      for (int64_t i = 0; i < n; ++i) {
        const A cut = cut_flow(conserved[i], rows_.clamp());
        top = cut > top ? cut : top;
      }
    });
    top_[grid_.item(g, segment)] = top;
  }

  void set_reference(int64_t g) {
    A& top = reference_[g] = -std::numeric_limits<A>::infinity();
    for (int64_t i = 0; i < grid_.segments(g); ++i) top = top_[grid_.item(g, i)] > top ? top_[grid_.item(g, i)] : top;
  }

  // The JAX copy's variant: at every key, a softmax over the heads.
  void softmax_over_heads() const {
    parallel_items(p_.sequences, [this](int64_t s, int) {
      const Tokens t = rows_.keys(s * p_.heads);
      std::vector<A> x(p_.heads);
      for (int64_t j = 0; j < t.count; ++j) {
        A top = -std::numeric_limits<A>::infinity(), sum = 0;
        for (int64_t h = 0; h < p_.heads; ++h) {
          x[h] = cut_flow(*rows_.conserved_source(t, s * p_.heads + h, j), rows_.clamp());
          top = x[h] > top ? x[h] : top;
        }
        for (A& e : x) sum += e = std::exp(e - top);
        for (int64_t h = 0; h < p_.heads; ++h) *rows_.weight(t, s * p_.heads + h, j) = x[h] / sum * t.count;
      }
    });
  }

  // `flows`: the pass finds the flows of sources too, and this sum of sources over theirs.
  void sum_product(int64_t g, int64_t segment, A* added, int worker, A* flows = nullptr) {
    Scratch w(*this);
    Product x(p_.dim, p_.dim_v, w.carve);
    std::memset(added, 0, state_size_ * sizeof(A));
    if (flows) std::memset(flows, 0, ld_ * sizeof(A));
    double mass = 0;
    const In* v[2 * kChunk];  // addresses of a block's values, and of those of the next one
    int64_t listed = segment * rows_.segment;
    for_sources(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, const F* rows) {
      A* weight = rows_.weight(t, g, first);
      if (flows) flows_of_sources(w, t, g, first, rows, n, flows);
      if (!p_.head_softmax) {
        mass += compete_block(rows_.conserved_source(t, g, first), n, rows_.clamp(), reference_[g], weight);
      }
      const int64_t known = min_count(t.count, first + 2 * kChunk);
      if (listed == first) {
        rows_.list_values(t, g, first, first + n, v);
        for (int64_t i = 0; i < n; ++i) prefetch_row<2>(v[i], p_.dim_v);
        listed += n;
      } else {
        std::memcpy(v, v + kChunk, n * sizeof *v);
      }
      rows_.list_values(t, g, listed, known, v + n);
      listed = known;
      // Over the product, the values of the next block are fetched.
      RowFetch<In> values;
      values.start(v, n, known - first, p_.dim_v, x.update_calls());
      x.update_with(
          rows, ld_, n,
          [&](int64_t i, int64_t column)
              __attribute__((always_inline)) { return weight[i] * row_part<A>(v[i], column, p_.dim_v); },
          added, [&] { values(); });
    });
    mass_[grid_.item(g, segment)] = mass;
  }

  // Until here weights are exponentials; now they become a softmax times the number of sources, and so does the sum.
  void keep_product(int64_t g, const A* total) const {
    const Tokens t = rows_.keys(g);
    double mass = 0;
    for (int64_t i = 0; i < grid_.segments(g); ++i) mass += mass_[grid_.item(g, i)];
    const A factor = p_.head_softmax ? A{1} : t.count == 0 ? A{0} : static_cast<A>(t.count / mass);
    A *weight = rows_.weight(t, g, 0), *product = products_->get() + g * state_size_;
    for (int64_t i = 0; i < t.count && !p_.head_softmax; ++i) weight[i] *= factor;
    for (int64_t i = 0; i < state_size_; ++i) product[i] = total[i] * factor;
    for (int64_t f = 0; f < p_.dim; ++f) {
      std::memcpy(static_cast<A*>(p_.product) + (g * p_.dim + f) * p_.dim_v, product + f * rows_.ld_v,
                  p_.dim_v * sizeof(A));
    }
  }

  void write_rows(int64_t g, int64_t segment, int worker) const {
    Scratch w(*this);
    const pool::RowWriter<In> around(stream_, nullptr, p_.dim_v), plain(false, nullptr, p_.dim_v);
    Product x(p_.dim, p_.dim_v, w.carve);
    x.set_state(products_->get() + g * state_size_, nullptr);
    const int64_t n_sources = rows_.keys(g).count;
    for_sinks(w, g, segment, worker, false, [&](const Tokens& t, int64_t first, int64_t n, const F* rows) {
      const A* incoming = rows_.incoming(t, g, first);
      A *conserved = rows_.conserved_sink(t, g, first), *factor = w.weight;
      dot_block_rows(rows, ld_, n, vector(g, kSourceFlows), conserved);
      const A rest = rows_.eps_dot(vector(g, kSourceFlows), ld_);
      for (int64_t i = 0; i < n; ++i) conserved[i] += rest;
      In* results[kChunk];
      bool aligned = true;
      for (int64_t i = 0; i < n; ++i) {
        results[i] = row_at<In>(p_.out, t.batch, rows_.head(g), t.at(first + i));
        aligned &= around.takes_blocks(results[i]);
      }
      if (n_sources == 0) {
        for (int64_t i = 0; i < n; ++i) store_zero_row(results[i], p_.dim_v);
        return;
      }
      sigmoid_block(conserved, n, static_cast<A>(static_cast<double>(t.count) / n_sources), factor);
      for (int64_t i = 0; i < n; ++i) factor[i] /= incoming[i];
      RowFetch<In> outs;
      if (!stream_) outs.start(results, 0, n, p_.dim_v, x.apply_calls(n));
      const pool::RowWriter<In>& writer = aligned ? around : plain;
      x.apply_state_to(rows, ld_, n, [&](auto& acc, int64_t row, int64_t column) __attribute__((always_inline)) {
        write_block(acc, factor + row, results + row, column, writer);
        outs();
      });
    });
  }

  // Columns of some result rows, from registers.
  template <int R, int V>
  ATTN_INLINE void write_block(vec<A> (&x)[R][V], const A* factor, In* const* to, int64_t column,
                               const pool::RowWriter<In>& writer) const {
    constexpr int L = Lanes<A>::n;
    const int64_t there = p_.dim_v - column;
    ATTN_UNROLL
    for (int r = 0; r < R; ++r) {
      ATTN_UNROLL
      for (int v = 0; v < V; ++v) x[r][v] *= factor[r];
    }
    if (there >= V * L) {
      ATTN_UNROLL
      for (int r = 0; r < R; ++r) {
        ATTN_UNROLL
        for (int v = 0; v < V; ++v) writer.vector(to[r] + column + v * L, x[r][v]);
      }
      return;
    }
    for (int r = 0; r < R; ++r) {
      A row[V * L];
      for (int v = 0; v < V; ++v) store(row + v * L, x[r][v]);
      store_scaled_row(to[r] + column, A{1}, row, there);
    }
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
