// Query pooling with many queries: scores of a tile of keys against panels of queries (micro.h), queries in SIMD lanes.
// Queries that all sequences share are packed once. Work items are (head, tile of query panels, split of a sequence's
// keys), sequences innermost, so that a tile of shared queries stays in the cache from one sequence to the next.
#pragma once

#include "cpu/query_operands.h"
#include "cpu/softmax_panel.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

constexpr int kTilePanels = 8;
constexpr int64_t kSplitTokens = 4096;  // keys of a sequence beyond this are split over work items

// Keys at a time: scores of a panel stay in L1. A softmax over the queries keeps the scores of all panels.
ATTN_INLINE int64_t tile_tokens(PoolActivation a) { return a == PoolActivation::softmax_queries ? 32 : 128; }

// Weights as operands: pairs of keys for bf16x2.
template <class T, int NV> ATTN_INLINE void store_weights(const Acc<T>* s, int n, T* weights) {
  constexpr int L = kLanes<T>;
  if constexpr (kPairRows<T>) {
    for (int j = 0; j < n; j += 2) {
      for (int v = 0; v < NV; ++v) {
        const vec<Acc<T>> hi = j + 1 < n ? load(s + ((j + 1) * NV + v) * L) : vec<Acc<T>>{};
        store(weights + (j / 2 * NV + v) * L, make_pairs(load(s + (j * NV + v) * L), hi));
      }
    }
  } else if (weights != s) {
    std::memcpy(weights, s, n * NV * L * sizeof(T));
  }
}

template <class In> class PanelForward {
  using T = Operand<In>;
  using A = Acc<T>;
  static constexpr int W = kPanel<T>, L = kLanes<T>;

  const QueryPoolParams& p_;
  const PanelCut<T> cut_;
  const int64_t depth_, columns_, tile_panels_, tiles_, tokens_;
  const Chunks splits_;
  const bool several_;       // has any sequence several splits?
  const Buffer<T> queries_;  // [sets][heads][panels][depth][W]
  const Buffer<A> parts_;    // [tiles][heads][splits][tile rows][columns + 2]: weighted sum, m, l
  const Buffer<A> factors_;  // relu_mean: 1 / kept keys of a sequence

  struct Scratch {
    T *k, *v, *weights;
    A *s, *o, *m, *l, *alpha;
    In* row;

    Scratch(Carve& c, const PanelForward& f)
        : k(c.take<T>(f.tokens_ * f.depth_)), v(c.take<T>(f.tokens_ * f.columns_)),
          weights(c.take<T>(f.tokens_ * W * (f.over_queries() ? f.tile_panels_ : 1))),
          s(c.take<A>(f.tokens_ * W * (f.over_queries() ? f.tile_panels_ : 1))),
          o(c.take<A>(f.tile_rows() * f.columns_)), m(c.take<A>(f.tile_rows())), l(c.take<A>(f.tile_rows())),
          alpha(c.take<A>(W)), row(c.take<In>(f.p_.dim_v)) {}
  };

 public:
  explicit PanelForward(const QueryPoolParams& p)
      : p_(p), cut_{p.queries}, depth_(depth_of<T>(p.dim)), columns_(round_up_lanes<T>(p.dim_v)),
        tile_panels_(over_queries() || cut_.panels() < kTilePanels ? cut_.panels() : kTilePanels),
        tiles_((cut_.panels() + tile_panels_ - 1) / tile_panels_), tokens_(tile_tokens(p.activation)),
        splits_(p.sequences, kSplitTokens), several_(any_several()),
        queries_(sets() * p.heads * cut_.padded_rows() * depth_),
        parts_(several_ ? tiles_ * p.heads * splits_.count() * part_size() : 0),
        factors_(p.activation == PoolActivation::relu_mean ? p.sequences.count : 0) {}

  void run() const {
    parallel_items(sets() * p_.heads, [this](int64_t i, int) { pack_head(i / p_.heads, i % p_.heads); });
    if (p_.activation == PoolActivation::relu_mean) mean_factors<A>(p_, factors_);
    const int64_t heads = tiles_ * p_.heads, sequences = p_.sequences.count;
    parallel_items(heads * splits_.count(), [&](int64_t i, int) { split(i / splits_.count(), i % splits_.count()); });
    // Sequences in several splits, or without any key.
    parallel_items(heads * sequences, [&](int64_t i, int) {
      const int64_t s = i % sequences, splits = splits_.first(s + 1) - splits_.first(s);
      if (splits != 1) join(i / sequences, s);
    });
  }

 private:
  bool over_queries() const { return p_.activation == PoolActivation::softmax_queries; }
  int64_t sets() const { return p_.q.batch == 0 ? 1 : p_.sequences.count; }
  int64_t tile_rows() const { return tile_panels_ * W; }
  int64_t part_size() const { return tile_rows() * (columns_ + 2); }
  bool any_several() const {
    for (int64_t s = 0; s < p_.sequences.count; ++s) {
      if (splits_.first(s + 1) - splits_.first(s) > 1) return true;
    }
    return false;
  }

  T* panel(int64_t set, int64_t head, int64_t i) const {
    return queries_ + ((set * p_.heads + head) * cut_.panels() + i) * W * depth_;
  }

  void pack_head(int64_t set, int64_t head) const {
    const In* base = static_cast<const In*>(p_.q.data) + set * p_.q.batch + head * p_.q.head;
    for (int64_t i = 0; i < cut_.panels(); ++i)
      pack_queries<T, In>(base, p_.q.token, p_.dim, cut_, i, panel(set, head, i));
  }

  // One split of a sequence for one tile of one head. `at` = head * tiles + tile.
  void split(int64_t at, int64_t index) const {
    const Scratch z = carve<Scratch>(*this);
    const Chunk c = splits_.at(index);
    const int64_t head = at / tiles_, first = at % tiles_ * tile_panels_;
    const int64_t last = first + tile_panels_ < cut_.panels() ? first + tile_panels_ : cut_.panels();
    const int64_t set = p_.q.batch == 0 ? 0 : c.sequence, kv_head = head / (p_.heads / p_.heads_kv);
    const In* k =
        static_cast<const In*>(p_.k.data) + c.span.batch * p_.k.batch + kv_head * p_.k.head + c.span.first * p_.k.token;
    const In* v =
        static_cast<const In*>(p_.v.data) + c.span.batch * p_.v.batch + kv_head * p_.v.head + c.span.first * p_.v.token;
    const bool whole = splits_.first(c.sequence + 1) - splits_.first(c.sequence) == 1;
    const RowWriter<In> writer = row_writer(z);
    bool summed = over_queries();  // do the sums hold anything yet?
    fill_row(z.m, -kInf<A>, tile_rows());
    clear_row(z.l, tile_rows());
    fill_row(z.alpha, A{1}, W);
    if (summed) clear_row(z.o, tile_rows() * columns_);
    TokenList tokens;
    for (int64_t t = c.begin; t < c.end;) {
      t = tokens.fill(p_.mask, c.span, t, c.end, tokens_);
      if (tokens.n == 0) break;
      const Operands<T> keys = as_rows<T, In>(k, p_.k.token, p_.dim, tokens, z.k);
      const Operands<T> values = as_columns<T, In>(v, p_.v.token, p_.dim_v, tokens, z.v);
      if (over_queries()) {
        share_keys(keys, values, tokens.n, set, head, z);
        continue;
      }
      const bool complete = whole && t == c.end,
                 direct = complete && writer.takes_blocks(out_rows(c.sequence, head, 0));
      for (int64_t i = first; i < last; ++i) {
        const int64_t row = (i - first) * W;
        with_vectors(cut_.vectors(i), [&](auto nv) {
          constexpr int NV = nv;
          vec<A> top[NV];
          for (int x = 0; x < NV; ++x) top[x] = splat(-kInf<A>);
          dot_panel<T, NV>(keys.data, keys.ld, tokens.n, depth_, panel(set, head, i), logit_factor(), z.s, top);
          if (p_.activation == PoolActivation::softmax_keys) {
            softmax_panel<T, NV>(z.s, tokens.n, top, A{1}, z.m + row, z.l + row, z.alpha, z.weights);
          } else {
            relu(z.s, tokens.n * NV * L);
            store_weights<T, NV>(z.s, tokens.n, z.weights);
          }
          if (direct) {
            // From registers, so that writing results overlaps with products.
            A factors[W];
            finish_statistics(c.sequence, head, i, row, z, factors);
            write_panel(z.weights, NV * L, tokens.n, values, summed ? z.o + row * columns_ : nullptr, z.alpha, factors,
                        cut_.rows(i), out_rows(c.sequence, head, i), writer);
          } else {
            acc_panel<T>(z.weights, NV * L, cut_.rows(i), depth_of<T>(tokens.n), values.data, values.ld, columns_,
                         summed ? z.alpha : nullptr, z.o + row * columns_, columns_);
          }
        });
        if (complete && !direct) finish_panel(c.sequence, head, i, row, z, writer);
      }
      if (complete) return;
      summed = true;
    }
    if (!summed) clear_row(z.o, tile_rows() * columns_);
    if (whole) return finish(c.sequence, head, first, last, z, writer);
    A* part = parts_ + (at * splits_.count() + index) * part_size();
    std::memcpy(part, z.o, tile_rows() * columns_ * sizeof(A));
    std::memcpy(part + tile_rows() * columns_, z.m, tile_rows() * sizeof(A));
    std::memcpy(part + tile_rows() * (columns_ + 1), z.l, tile_rows() * sizeof(A));
  }

  A logit_factor() const {
    return static_cast<A>(p_.activation == PoolActivation::relu_mean ? p_.scale : p_.scale * kLog2e);
  }

  static void relu(A* s, int64_t n) {
    const vec<A> zero{};
    for (int64_t i = 0; i < n; i += L) store(s + i, load(s + i) < 0 ? zero : load(s + i));
  }

  // Softmax over all queries of the head for each key, then the weighted sums.
  void share_keys(const Operands<T>& keys, const Operands<T>& values, int n, int64_t set, int64_t head,
                  const Scratch& z) const {
    const int64_t panels = cut_.panels(), stride = tokens_ * W;
    for (int64_t i = 0; i < panels; ++i) {
      with_vectors(cut_.vectors(i), [&](auto nv) {
        constexpr int NV = nv;
        vec<A> top[NV] = {};
        dot_panel<T, NV>(keys.data, keys.ld, n, depth_, panel(set, head, i), logit_factor(), z.s + i * stride, top);
      });
    }
    // Lanes past the last query take no part.
    const int rows = cut_.rows(panels - 1), width = cut_.vectors(panels - 1) * L;
    for (int j = 0; j < n; ++j) {
      for (int r = rows; r < width; ++r) z.s[(panels - 1) * stride + j * width + r] = -kInf<A>;
    }
    for (int j = 0; j < n; ++j) {
      const auto for_vectors = [&](auto&& f) {
        for (int64_t i = 0; i < panels; ++i) {
          const int vectors = cut_.vectors(i);
          for (int v = 0; v < vectors; ++v) f(z.s + i * stride + (j * vectors + v) * L);
        }
      };
      vec<A> top = splat(-kInf<A>), sum{};
      for_vectors([&](A* s) { top = vmax(load(s), top); });
      const A most = max_lanes<A>(top);
      for_vectors([&](A* s) {
        const vec<A> e = exp2v(load(s) - most);
        store(s, e);
        sum += e;
      });
      const A factor = 1 / sum_lanes<A>(sum);
      for_vectors([&](A* s) { store(s, load(s) * factor); });
    }
    for (int64_t i = 0; i < panels; ++i) {
      with_vectors(cut_.vectors(i), [&](auto nv) {
        constexpr int NV = nv;
        store_weights<T, NV>(z.s + i * stride, n, z.weights);
        acc_panel<T>(z.weights, NV * L, cut_.rows(i), depth_of<T>(n), values.data, values.ld, columns_, z.alpha,
                     z.o + i * W * columns_, columns_);
      });
    }
  }

  // Result rows of one tile from accumulators o, m, l.
  void finish(int64_t sequence, int64_t head, int64_t first, int64_t last, const Scratch& z,
              const RowWriter<In>& writer) const {
    for (int64_t i = first; i < last; ++i) finish_panel(sequence, head, i, (i - first) * W, z, writer);
  }

  RowWriter<In> row_writer(const Scratch& z) const {
    const int64_t elements = p_.sequences.count * p_.heads * p_.queries * p_.dim_v;
    return RowWriter<In>(elements * int64_t{sizeof(In)} >= kStreamBytes, z.row, p_.dim_v);
  }

  In* out_rows(int64_t sequence, int64_t head, int64_t panel) const {
    return static_cast<In*>(p_.out) + ((sequence * p_.heads + head) * p_.queries + panel * W) * p_.dim_v;
  }

  // Of panel `panel`, whose accumulators start at row `row` of the tile.
  void finish_panel(int64_t sequence, int64_t head, int64_t panel, int64_t row, const Scratch& z,
                    const RowWriter<In>& writer) const {
    A factors[W];
    finish_statistics(sequence, head, panel, row, z, factors);
    In* out = out_rows(sequence, head, panel);
    const A* from = z.o + row * columns_;
    for (int64_t r = 0; r < cut_.rows(panel); ++r, out += p_.dim_v, from += columns_) {
      scale_row<In>(writer.row(out), factors[r], from, p_.dim_v);
      writer.done(out);
    }
  }

  // The factors of a panel's sums; lse goes to the result.
  void finish_statistics(int64_t sequence, int64_t head, int64_t panel, int64_t row, const Scratch& z,
                         A* factors) const {
    if (p_.activation != PoolActivation::softmax_keys) {
      fill_row(factors, p_.activation == PoolActivation::relu_mean ? factors_[sequence] : A{1}, W);
      return;
    }
    A lse[W];
    finish_rows(z.m + row, z.l + row, static_cast<const A*>(nullptr), W, factors, lse);
    const int64_t at = (sequence * p_.heads + head) * p_.queries + panel * W;
    std::memcpy(static_cast<A*>(p_.lse) + at, lse, cut_.rows(panel) * sizeof(A));
  }

  // Result rows of a panel whose last keys are `values`: (alpha sums + weights^T values) * factors. sums is null if
  // these are the only keys.
  void write_panel(const T* weights, int64_t width, int n, const Operands<T>& values, const A* sums, const A* alpha,
                   const A* factors, int64_t rows, In* out, const RowWriter<In>& writer) const {
    const int64_t dim = p_.dim_v, ld = columns_;
    const auto write_block = [&](auto& acc, int64_t r0, int64_t column) __attribute__((always_inline)) {
      constexpr int R = kAccBlock<T>, V = std::extent_v<std::remove_reference_t<decltype(acc)>, 1>;
      if (sums) {
        const A *from = sums + r0 * ld + column, *old = alpha + r0;
        ATTN_UNROLL
        for (int r = 0; r < R; ++r) {
          ATTN_UNROLL
          for (int v = 0; v < V; ++v) acc[r][v] += load(from + r * ld + v * L) * old[r];
        }
      }
      ATTN_UNROLL
      for (int r = 0; r < R; ++r) {
        ATTN_UNROLL
        for (int v = 0; v < V; ++v) acc[r][v] *= factors[r0 + r];
      }
      if (r0 + R <= rows && column + V * L <= dim) {
        writer.block(out + r0 * dim + column, acc);
      } else {
        A block[R * V * L];
        ATTN_UNROLL
        for (int r = 0; r < R; ++r) {
          ATTN_UNROLL
          for (int v = 0; v < V; ++v) store(block + (r * V + v) * L, acc[r][v]);
        }
        write_part(block, V * L, rows - r0, dim - column, out + r0 * dim + column);
      }
    };
    for_acc_blocks<T>(weights, width, rows, depth_of<T>(n), values.data, values.ld, columns_, write_block);
  }

  // Of a block of `width` columns, the rows and columns that there are.
  void write_part(const A* block, int64_t width, int64_t rows, int64_t columns, In* out) const {
    for (int64_t r = 0; r < rows && r < kAccBlock<T>; ++r, out += p_.dim_v, block += width) {
      scale_row<In>(out, A{1}, block, columns < width ? columns : width);
    }
  }

  // Adds the splits of a sequence in order.
  void join(int64_t at, int64_t sequence) const {
    const Scratch z = carve<Scratch>(*this);
    const int64_t first = at % tiles_ * tile_panels_;
    const int64_t last = first + tile_panels_ < cut_.panels() ? first + tile_panels_ : cut_.panels();
    const bool softmax = p_.activation == PoolActivation::softmax_keys;
    const int64_t begin = splits_.first(sequence), end = splits_.first(sequence + 1);
    const auto part = [&](int64_t i) { return parts_ + (at * splits_.count() + i) * part_size(); };
    fill_row(z.m, -kInf<A>, tile_rows());
    clear_row(z.l, tile_rows());
    clear_row(z.o, tile_rows() * columns_);
    for (int64_t r = 0; r < tile_rows(); ++r) {
      for (int64_t i = begin; softmax && i < end; ++i) {
        const A m = part(i)[tile_rows() * columns_ + r];
        if (m > z.m[r]) z.m[r] = m;
      }
      for (int64_t i = begin; i < end; ++i) {
        const A m = part(i)[tile_rows() * columns_ + r], l = part(i)[tile_rows() * (columns_ + 1) + r];
        if (softmax && m == -kInf<A> && l == 0) continue;  // no key here; a NaN has l = NaN and comes through
        const A weight = softmax ? std::exp2(m - z.m[r]) : A{1};
        z.l[r] += weight * l;
        const A* from = part(i) + r * columns_;
        A* o = z.o + r * columns_;
        for_lanes<A>(columns_, [&](int64_t x, auto w) { put(o + x, get(o + x, w) + get(from + x, w) * weight, w); });
      }
    }
    finish(sequence, at / tiles_, first, last, z, row_writer(z));
  }
};

template <class In> inline void panel_forward(const QueryPoolParams& p) { PanelForward<In>(p).run(); }

}  // namespace pool
ATTN_NAMESPACE_END
