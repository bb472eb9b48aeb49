// Linear attention backward. With the mass as one more column of the values, v' = [v, 1], the output is a function of
// sums N' = sum_j (phi(q_i) . phi(k_j)) v'_j only, and g'_i = dN'_i = [dout_i / mass_i, -(dout_i . out_i) / mass_i].
// Every gradient is the forward's product with other roles:
//   dphi(q_i) = sum_j (g'_i . v'_j) phi(k_j)     over the keys row i sees
//   dphi(k_j) = sum_i (v'_j . g'_i) phi(q_i)     over the rows that see key j
//   dv_j      = sum_i (phi(k_j) . phi(q_i)) g_i  likewise
#pragma once

#include "cpu/linear_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> struct LinearBackward {
  using Rows = LinearRows<In>;
  using T = typename Rows::T;
  using A = typename Rows::A;
  using Product = ScanProduct<T>;
  // The gradient of the mass stands against many keys at once, so as bf16 it takes two columns, whose sum it is.
  static constexpr int64_t kMassColumns = kPairRows<T> ? 2 : 1;

  const LinearBackwardParams& b;
  const LinearParams& p;
  const Rows rows;
  const int64_t features, dim_v;
  int64_t scratch_bytes;
  // States, one after the other: [v' x phi] of one kind or the other, and [phi x v].
  int64_t wide_size, narrow_size, wide_ld, narrow_ld;

  explicit LinearBackward(const LinearBackwardParams& params)
      : b(params), p(params.forward), rows(params.forward), features(rows.features), dim_v(p.dim_v) {
    Carve probe{nullptr};
    const Scratch w(*this, probe);
    scratch_bytes = probe.used;
    wide_size = w.wide.state_size();
    wide_ld = w.wide.ld_out;
    narrow_size = w.narrow.state_size();
    narrow_ld = w.narrow.ld_out;
  }

  struct Scratch {
    Product wide;    // inner v', outer phi
    Product narrow;  // inner phi, outer v
    A *row, *gradient;
    Scratch(const LinearBackward& x, Carve& c)
        : wide(x.dim_v + kMassColumns, x.features, c), narrow(x.features, x.dim_v, c), row(c.take<A>(wide.ld_in)),
          gradient(c.take<A>(x.p.dim)) {}
  };

  template <class F> void with_scratch(F&& fn) const {
    Carve c{static_cast<char*>(thread_scratch(scratch_bytes))};
    Scratch w(*this, c);
    fn(w);
  }

  // ---- rows --------------------------------------------------------------------------------------------------------

  void wide_value(const Stretch& s, int64_t head, int64_t i, A* to, int64_t ld) const {
    rows.value(s, head, i, to, ld);
    for (int64_t x = 0; x < kMassColumns; ++x) to[dim_v + x] = rows.kept(s, i) ? A{1} : A{0};
  }

  __attribute__((noinline)) void wide_gradient(const Stretch& s, int64_t head, int64_t i, A* to, int64_t ld) const {
    load_row(row_at<const In>(b.dout, s.batch, head, s.first + i), dim_v, to, ld);
    if (!p.normalize) return;
    const A mass = static_cast<const A*>(p.mass)[(s.batch * p.heads + head) * p.tq + s.first + i];
    scale_row(to, mass == 0 ? A{0} : 1 / mass, ld);
    if constexpr (kPairRows<T>) {  // as the products will see it, or the two terms wouldn't cancel
      for (int64_t x = 0; x < dim_v; ++x) to[x] = to_float(From<bf16>::of(to[x]));
    }
    const In* out = row_at<const In>(p.out, s.batch, head, s.first + i);
    A sum = 0;
    constexpr int L = Lanes<A>::n;
    vec<A> sums{};
    int64_t x = 0;
    for (; x + L <= dim_v; x += L) sums += load(to + x) * load_as(out + x, A{});
    for (; x < dim_v; ++x) sum += to[x] * to_float(out[x]);
    const A dmass = -(sum + sum_lanes<A>(sums));
    to[dim_v] = dmass;
    if constexpr (kMassColumns == 2) {
      to[dim_v] = to_float(From<bf16>::of(dmass));
      to[dim_v + 1] = dmass - to[dim_v];
    }
  }

  void store_query_gradient(const Stretch& s, int64_t head, int64_t i, const A* df, A* scratch) const {
    feature_gradient(p.map, rows.q(s, head, i), p.dim, df, row_at<In>(b.dq, s.batch, head, s.first + i), scratch);
  }

  void store_key_gradients(const Stretch& s, int64_t head, int64_t i, const A* df, const A* dv, A* scratch) const {
    In* dk_row = row_at<In>(b.dk, s.batch, head, s.first + i);
    In* dv_row = row_at<In>(b.dv, s.batch, head, s.first + i);
    if (!rows.kept(s, i)) {
      store_zero_row(dk_row, p.dim);
      store_zero_row(dv_row, dim_v);
      return;
    }
    feature_gradient(p.map, rows.k(s, head, i), p.dim, df, dk_row, scratch);
    store_scaled_row(dv_row, A{1}, dv, dim_v);
  }

  // ---- states ------------------------------------------------------------------------------------------------------

  // [v' x phi] from the tensors' s [F, Dv] and z [F]; `mass_rows` rows hold z, the rest 0.
  void load_wide(const void* s, const void* z, int64_t g, int64_t mass_rows, A* to) const {
    std::memset(to, 0, wide_size * sizeof(A));
    const A* from = static_cast<const A*>(s) + g * features * dim_v;
    for (int64_t f = 0; s && f < features; ++f) {
      for (int64_t x = 0; x < dim_v; ++x) to[x * wide_ld + f] = from[f * dim_v + x];
    }
    for (int64_t i = 0; z && i < mass_rows; ++i) rows.pad_sum(z, g, to + (dim_v + i) * wide_ld, wide_ld);
  }

  // [phi x v], the transpose of the value rows of [v' x phi].
  void narrow_from_wide(const A* wide, A* narrow) const {
    std::memset(narrow, 0, narrow_size * sizeof(A));
    for (int64_t f = 0; f < features; ++f) {
      for (int64_t x = 0; x < dim_v; ++x) narrow[f * narrow_ld + x] = wide[x * wide_ld + f];
    }
  }

  // Gradients of the initial state from the sums over all rows.
  void store_initial(int64_t g, const A* wide, const A* narrow) const {
    if (!b.ds0) return;
    rows.unpad_state(narrow, narrow_ld, b.ds0, g);
    A* dz0 = static_cast<A*>(b.dz0) + g * features;
    for (int64_t f = 0; f < features; ++f) {
      dz0[f] = wide[dim_v * wide_ld + f];
      if (kMassColumns == 2) dz0[f] += wide[(dim_v + 1) * wide_ld + f];
    }
  }

  // ---- causal ------------------------------------------------------------------------------------------------------

  void load_keys(Product& x, const Stretch& s, int64_t head, int64_t first, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      wide_value(s, head, first + i, x.b + i * x.ld_in, x.ld_in);
      rows.key_features(s, head, first + i, x.c + i * x.ld_out, x.ld_out);
    }
    x.set_keys(n);
  }

  void sum_keys(int64_t g, int64_t segment, A* added) const {
    with_scratch([&](Scratch& w) {
      const Stretch s = rows.keys(g);
      std::memset(added, 0, wide_size * sizeof(A));
      rows.for_chunks(s.count, segment, [&](int64_t first, int64_t n) {
        load_keys(w.wide, s, rows.head_kv(g), first, n);
        w.wide.update(added);
      });
    });
  }

  void query_segment(int64_t g, int64_t segment, const A* state, A* added) const {
    with_scratch([&](Scratch& w) {
      const Stretch s = rows.keys(g);
      const int64_t head_kv = rows.head_kv(g);
      Product& x = w.wide;
      std::memset(added, 0, wide_size * sizeof(A));
      rows.for_chunks(s.count, segment, [&](int64_t first, int64_t n) {
        load_keys(x, s, head_kv, first, n);
        x.set_state(state, added);
        for (int64_t h = head_kv * rows.group; h < (head_kv + 1) * rows.group; ++h) {
          for (int64_t i = 0; i < n; ++i) wide_gradient(s, h, first + i, x.a + i * x.ld_in, x.ld_in);
          x.set_queries(n);
          x.multiply(n);
          for (int64_t i = 0; i < n; ++i) store_query_gradient(s, h, first + i, x.out + i * x.ld_out, w.gradient);
        }
        x.update(added);
      });
    });
  }

  // Rows g', phi(q), g of one head, last token first.
  void load_rows_reversed(Scratch& w, const Stretch& s, int64_t head, int64_t first, int64_t n) const {
    Product &x = w.wide, &y = w.narrow;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = first + n - 1 - i;
      wide_gradient(s, head, t, x.b + i * x.ld_in, x.ld_in);
      rows.query_features(s, head, t, x.c + i * x.ld_out, x.ld_out);
      std::memcpy(y.b + i * y.ld_in, x.c + i * x.ld_out, y.ld_in * sizeof(A));
      load_row(x.b + i * x.ld_in, dim_v, y.c + i * y.ld_out, y.ld_out);
    }
    x.set_keys(n);
    y.set_keys(n);
  }

  void sum_rows(int64_t g, int64_t segment, A* added) const {
    with_scratch([&](Scratch& w) {
      const Stretch s = rows.queries(g);
      std::memset(added, 0, (wide_size + narrow_size) * sizeof(A));
      rows.for_chunks_reversed(s.count, segment, [&](int64_t first, int64_t n) {
        for (int64_t h = rows.head_kv(g) * rows.group; h < (rows.head_kv(g) + 1) * rows.group; ++h) {
          load_rows_reversed(w, s, h, first, n);
          w.wide.update(added);
          w.narrow.update(added + wide_size);
        }
      });
    });
  }

  void key_segment(int64_t g, int64_t segment, const A* state, A* added) const {
    with_scratch([&](Scratch& w) {
      const Stretch s = rows.keys(g);
      const int64_t head_kv = rows.head_kv(g), first_head = head_kv * rows.group;
      Product &x = w.wide, &y = w.narrow;
      std::memset(added, 0, (wide_size + narrow_size) * sizeof(A));
      rows.for_chunks_reversed(s.count, segment, [&](int64_t first, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
          wide_value(s, head_kv, first + n - 1 - i, x.a + i * x.ld_in, x.ld_in);
          rows.key_features(s, head_kv, first + n - 1 - i, y.a + i * y.ld_in, y.ld_in);
        }
        x.set_queries(n);
        y.set_queries(n);
        x.set_state(state, added);
        y.set_state(state + wide_size, added + wide_size);
        for (int64_t h = first_head; h < first_head + rows.group; ++h) {
          load_rows_reversed(w, s, h, first, n);
          x.multiply(n, h == first_head, h != first_head);
          y.multiply(n, h == first_head, h != first_head);
          x.update(added);
          y.update(added + wide_size);
        }
        for (int64_t i = 0; i < n; ++i) {
          store_key_gradients(s, head_kv, first + n - 1 - i, x.out + i * x.ld_out, y.out + i * y.ld_out, w.gradient);
        }
      });
    });
  }

  void run_causal(const SegmentGrid& grid) const {
    two_level_scan<A>(
        grid, false, wide_size, [this](int64_t g, A* state) { load_wide(p.s0, p.z0, g, kMassColumns, state); },
        [this](int64_t g, int64_t i, A* added) { sum_keys(g, i, added); },
        [this](int64_t g, int64_t i, const A* state, A* added) { query_segment(g, i, state, added); },
        [](int64_t, const A*) {});
    two_level_scan<A>(
        grid, true, wide_size + narrow_size,
        [this](int64_t g, A* state) {
          load_wide(b.ds, b.dz, g, 1, state);
          narrow_from_wide(state, state + wide_size);
        },
        [this](int64_t g, int64_t i, A* added) { sum_rows(g, i, added); },
        [this](int64_t g, int64_t i, const A* state, A* added) { key_segment(g, i, state, added); },
        [this](int64_t g, const A* state) { store_initial(g, state, state + wide_size); });
  }

  // ---- every row sees every key ------------------------------------------------------------------------------------

  void sum_full_rows(int64_t g, int64_t segment, A* added) const {
    with_scratch([&](Scratch& w) {
      const Stretch s = rows.queries(g);
      std::memset(added, 0, wide_size * sizeof(A));
      rows.for_chunks(s.count, segment, [&](int64_t first, int64_t n) {
        Product& x = w.wide;
        for (int64_t h = rows.head_kv(g) * rows.group; h < (rows.head_kv(g) + 1) * rows.group; ++h) {
          for (int64_t i = 0; i < n; ++i) {
            wide_gradient(s, h, first + i, x.b + i * x.ld_in, x.ld_in);
            rows.query_features(s, h, first + i, x.c + i * x.ld_out, x.ld_out);
          }
          x.set_keys(n);
          x.update(added);
        }
      });
    });
  }

  void full_query_rows(int64_t g, int64_t head, int64_t tile, const A* state) const {
    with_scratch([&](Scratch& w) {
      const Stretch s = rows.queries(g);
      Product& x = w.wide;
      x.set_state(state, nullptr);
      rows.for_chunks(s.count, tile, [&](int64_t first, int64_t n) {
        for (int64_t i = 0; i < n; ++i) wide_gradient(s, head, first + i, x.a + i * x.ld_in, x.ld_in);
        x.apply_state(n);
        for (int64_t i = 0; i < n; ++i) store_query_gradient(s, head, first + i, x.out + i * x.ld_out, w.gradient);
      });
    });
  }

  void full_key_rows(int64_t g, int64_t tile, const A* state) const {
    with_scratch([&](Scratch& w) {
      const Stretch s = rows.keys(g);
      Product &x = w.wide, &y = w.narrow;
      x.set_state(state, nullptr);
      y.set_state(state + wide_size, nullptr);
      rows.for_chunks(s.count, tile, [&](int64_t first, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
          wide_value(s, rows.head_kv(g), first + i, x.a + i * x.ld_in, x.ld_in);
          rows.key_features(s, rows.head_kv(g), first + i, y.a + i * y.ld_in, y.ld_in);
        }
        x.apply_state(n);
        y.apply_state(n);
        for (int64_t i = 0; i < n; ++i) {
          store_key_gradients(s, rows.head_kv(g), first + i, x.out + i * x.ld_out, y.out + i * y.ld_out, w.gradient);
        }
      });
    });
  }

  void run_full(const SegmentGrid& key_grid) const {
    // For each group: the sums over keys, of the forward; then the sums over rows, in both forms.
    const int64_t size = 2 * wide_size + narrow_size;
    const Workspace<A> totals(rows.groups() * size);
    const auto total = [&](int64_t g) { return totals.get() + g * size; };
    const SegmentGrid row_grid(rows.groups(), rows.segment(), [this](int64_t g) { return rows.queries(g).count; });
    two_level_sum<A>(
        row_grid, wide_size, [this](int64_t g, A* state) { load_wide(b.ds, b.dz, g, 1, state); },
        [this](int64_t g, int64_t i, A* added) { sum_full_rows(g, i, added); },
        [&](int64_t g, const A* state) {
          load_wide(p.s, p.z, g, kMassColumns, total(g));
          std::memcpy(total(g) + wide_size, state, wide_size * sizeof(A));
          narrow_from_wide(state, total(g) + 2 * wide_size);
          store_initial(g, state, total(g) + 2 * wide_size);
        });
    const SegmentGrid tiles(rows.groups() * rows.group, rows.segment(),
                            [this](int64_t item) { return rows.queries(item / rows.group).count; });
    tiles.for_segments([&](int64_t item, int64_t tile) {
      const int64_t g = item / rows.group;
      full_query_rows(g, rows.head_kv(g) * rows.group + item % rows.group, tile, total(g));
    });
    key_grid.for_segments([&](int64_t g, int64_t tile) { full_key_rows(g, tile, total(g) + wide_size); });
  }

  void run() const {
    const SegmentGrid grid(rows.groups(), rows.segment(), [this](int64_t g) { return rows.keys(g).count; });
    if (p.causal) run_causal(grid);
    else run_full(grid);
    rows.for_unused_tokens(p.tq, [this](int64_t t) {
      for (int64_t h = 0; h < p.heads; ++h) store_zero_row(row_at<In>(b.dq, 0, h, t), p.dim);
    });
    rows.for_unused_tokens(p.tk, [this](int64_t t) {
      for (int64_t h = 0; h < p.heads_kv; ++h) {
        store_zero_row(row_at<In>(b.dk, 0, h, t), p.dim);
        store_zero_row(row_at<In>(b.dv, 0, h, t), dim_v);
      }
    });
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
