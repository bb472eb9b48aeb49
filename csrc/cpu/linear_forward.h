// Linear attention forward: out_i = phi(q_i) S / (phi(q_i) . z), S and z being the sums of phi(k_j) (x) v_j and
// phi(k_j) over the keys that row i sees.
#pragma once

#include "cpu/linear_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> struct LinearForward {
  using Rows = LinearRows<In>;
  using T = typename Rows::T;
  using A = typename Rows::A;
  using Product = ScanProduct<T>;

  const LinearParams& p;
  const Rows rows;
  int64_t scratch_bytes, ld, ld_z, z_at, size;  // a state: S [.][ld], then z [ld_z] at z_at

  explicit LinearForward(const LinearParams& params) : p(params), rows(params) {
    Carve probe{nullptr};
    const Product x(rows.features, p.dim_v, probe);
    probe.take<A>(x.ld_in);
    scratch_bytes = probe.used;
    ld = x.ld_out;
    ld_z = x.ld_in;
    z_at = x.state_size();
    size = z_at + ld_z;
  }

  struct Scratch {
    Carve carve;
    Product product;
    A* z;
    explicit Scratch(const LinearForward& f)
        : carve{static_cast<char*>(thread_scratch(f.scratch_bytes))}, product(f.rows.features, f.p.dim_v, carve),
          z(carve.take<A>(f.ld_z)) {}
  };

  void load_keys(Product& x, const Stretch& s, int64_t head, int64_t first, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      rows.key_features(s, head, first + i, x.b + i * x.ld_in, x.ld_in);
      rows.value(s, head, first + i, x.c + i * x.ld_out, x.ld_out);
    }
    x.set_keys(n);
  }

  // Never inlined: both plans of a scan must round in the same way.
  __attribute__((noinline)) void add_keys(const Product& x, int64_t n, A* state) const {
    x.update(state);
    for (int64_t i = 0; i < n; ++i) add_row(state + z_at, x.b + i * x.ld_in, x.ld_in);
  }

  void clear(A* state) const { std::memset(state, 0, size * sizeof(A)); }

  void sum_segment(int64_t g, int64_t segment, A* added) const {
    Scratch w(*this);
    const Stretch s = rows.keys(g);
    clear(added);
    rows.for_chunks(s.count, segment, [&](int64_t first, int64_t n) {
      load_keys(w.product, s, rows.head_kv(g), first, n);
      add_keys(w.product, n, added);
    });
  }

  void causal_segment(int64_t g, int64_t segment, const A* state, A* added) const {
    Scratch w(*this);
    Product& x = w.product;
    const Stretch s = rows.keys(g);
    const int64_t head_kv = rows.head_kv(g);
    clear(added);
    rows.for_chunks(s.count, segment, [&](int64_t first, int64_t n) {
      load_keys(x, s, head_kv, first, n);
      x.set_state(state, added);
      for (int64_t f = 0; f < ld_z; f += Lanes<A>::n) store(w.z + f, load(state + z_at + f) + load(added + z_at + f));
      for (int64_t h = head_kv * rows.group; h < (head_kv + 1) * rows.group; ++h) {
        for (int64_t i = 0; i < n; ++i) rows.query_features(s, h, first + i, x.a + i * x.ld_in, x.ld_in);
        x.set_queries(n);
        if (p.normalize) x.multiply_with_mass(n, w.z);
        else x.multiply(n);
        for (int64_t i = 0; i < n; ++i) finish_row(s, h, first + i, x.out + i * x.ld_out, x.mass[i]);
      }
      add_keys(x, n, added);
    });
  }

  // Rows of one query tile that see every key.
  void full_rows(int64_t g, int64_t head, int64_t tile, const A* state) const {
    Scratch w(*this);
    Product& x = w.product;
    const Stretch s = rows.queries(g);
    x.set_state(state, nullptr);
    rows.for_chunks(s.count, tile, [&](int64_t first, int64_t n) {
      for (int64_t i = 0; i < n; ++i) rows.query_features(s, head, first + i, x.a + i * x.ld_in, x.ld_in);
      x.apply_state(n);
      for (int64_t i = 0; i < n; ++i) {
        const A mass = p.normalize ? dot_rows(x.a + i * x.ld_in, state + z_at, x.ld_in) : A{0};
        finish_row(s, head, first + i, x.out + i * x.ld_out, mass);
      }
    });
  }

  void finish_row(const Stretch& s, int64_t head, int64_t i, const A* row, A mass) const {
    A factor = 1;
    if (p.normalize) {
      mass += mass < 0 ? -static_cast<A>(p.eps) : static_cast<A>(p.eps);
      factor = mass == 0 ? 0 : 1 / mass;
      if (p.mass) static_cast<A*>(p.mass)[(s.batch * p.heads + head) * p.tq + s.first + i] = mass;
    }
    store_scaled_row(row_at<In>(p.out, s.batch, head, s.first + i), factor, row, p.dim_v);
  }

  void start(int64_t g, A* state) const {
    clear(state);  // with the padding
    if (p.s0) rows.pad_state(p.s0, g, state, ld);
    if (p.z0) rows.pad_sum(p.z0, g, state + z_at, ld_z);
  }

  void end(int64_t g, const A* state) const {
    if (p.s) rows.unpad_state(state, ld, p.s, g);
    if (p.z) rows.unpad_sum(state + z_at, p.z, g);
  }

  void run() const {
    const SegmentGrid grid(rows.groups(), rows.segment(), [this](int64_t g) { return rows.keys(g).count; });
    const auto first = [this](int64_t g, A* state) { start(g, state); };
    const auto sum = [this](int64_t g, int64_t i, A* added) { sum_segment(g, i, added); };
    if (p.causal) {
      two_level_scan<A>(
          grid, false, size, first, sum,
          [this](int64_t g, int64_t i, const A* state, A* added) { causal_segment(g, i, state, added); },
          [this](int64_t g, const A* state) { end(g, state); });
    } else {
      const Workspace<A> totals(rows.groups() * size);
      two_level_sum<A>(grid, size, first, sum, [&](int64_t g, const A* state) {
        std::memcpy(totals.get() + g * size, state, size * sizeof(A));
        end(g, state);
      });
      const SegmentGrid tiles(rows.groups() * rows.group, rows.segment(),
                              [this](int64_t item) { return rows.queries(item / rows.group).count; });
      tiles.for_segments([&](int64_t item, int64_t tile) {
        const int64_t g = item / rows.group;
        full_rows(g, rows.head_kv(g) * rows.group + item % rows.group, tile, totals.get() + g * size);
      });
    }
    rows.for_unused_tokens(p.tq, [this](int64_t t) {
      for (int64_t h = 0; h < p.heads; ++h) {
        store_zero_row(row_at<In>(p.out, 0, h, t), p.dim_v);
        if (p.mass) static_cast<A*>(p.mass)[h * p.tq + t] = 0;
      }
    });
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
