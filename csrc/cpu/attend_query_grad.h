// Backward, first pass: dQ (and the gradient of the head gate). Walks the forward's schedule; query rows in lanes.
#pragma once

#include "cpu/backward_rows.h"
#include "cpu/mask_panel.h"

ATTN_NAMESPACE_BEGIN

template <class In> struct QueryGradItem {
  using T = Operand<In>;
  using A = Acc<T>;
  static constexpr int W = kPanel<T>, L = kLanes<T>;

  const AttendBackwardParams& bp;
  const AttendParams& p;
  const BackwardRows<In>& state;
  const int64_t depth, depth_v, columns;
  RowBlock* rows;
  KeyTile* tile;
  T *q, *dout, *k, *v, *ds;
  ColumnOperand<T, In>* keys;
  A *dq, *s, *dp, *lse2, *delta, *gate, *dgate, *ones, *key_weight;
  int32_t* segment;

  QueryGradItem(const AttendBackwardParams& params, const BackwardRows<In>& rows_state, Carve& c)
      : bp(params), p(params.forward), state(rows_state), depth(depth_of<T>(p.dim)), depth_v(depth_of<T>(p.dim_v)),
        columns(round_up_lanes<T>(p.dim)) {
    const int n = tile_keys(p.dim, p.dim_v);
    rows = c.take<RowBlock>(1);
    tile = c.take<KeyTile>(1);
    keys = c.take<ColumnOperand<T, In>>(1);
    q = c.take<T>((kMaxRows + W) * depth);
    dout = c.take<T>((kMaxRows + W) * depth_v);
    k = c.take<T>(n * depth);
    v = c.take<T>(n * depth_v);
    T* key_columns = c.take<T>(n * columns);
    if (c.base) keys->scratch = key_columns;
    dq = c.take<A>((kMaxRows + W) * columns);
    s = c.take<A>(n * W);
    dp = c.take<A>(n * W);
    ds = kPairRows<T> ? c.take<T>(n * W) : reinterpret_cast<T*>(s);
    lse2 = c.take<A>(kMaxRows + 2 * W);
    delta = c.take<A>(kMaxRows + 2 * W);
    gate = c.take<A>(kMaxRows + 2 * W);
    dgate = c.take<A>(kMaxRows + 2 * W);
    ones = c.take<A>(W);
    key_weight = c.take<A>(n);
    segment = c.take<int32_t>(n);
  }

  void load_rows(const Sequence& seq) {
    auto row_of = [&](const View4& x, int32_t r) {
      return static_cast<const In*>(x.data) + seq.batch * x.batch + rows->head_of(r) * x.head +
             (seq.q_token + rows->query_of(r)) * x.token;
    };
    for (int32_t first = 0; first < rows->rows; first += W) {
      const int32_t n = min_i32(W, rows->rows - first);
      const int64_t width = n <= L ? L : W;
      pack_panel<T, In>([&](int64_t r) { return row_of(p.q, first + static_cast<int32_t>(r)); }, n, p.dim, q + first * depth, width);
      pack_panel<T, In>([&](int64_t r) { return row_of(bp.dout, first + static_cast<int32_t>(r)); }, n, p.dim_v, dout + first * depth_v, width);
    }
    state.load_block(seq, *rows, lse2, delta, gate);
    std::memset(dq, 0, (rows->rows + W) * columns * sizeof(A));
    std::memset(dgate, 0, (kMaxRows + 2 * W) * sizeof(A));
    for (int i = 0; i < W; ++i) ones[i] = 1;
  }

  // s: scores -> dS, in the operand type. dgate += sum_j P dP.
  template <int NV> void score_gradients(int32_t first, int a, int b, bool masked, const Modifiers<A>& mod) {
    PanelMask<A, NV> mask(*rows, first, *tile, mod);
    vec<A> row_lse[NV], row_delta[NV], row_gate[NV], gate_sum[NV];
    for (int i = 0; i < NV; ++i) {
      row_lse[i] = load(lse2 + first + i * L);
      row_delta[i] = load(delta + first + i * L);
      row_gate[i] = load(gate + first + i * L);
      gate_sum[i] = load(dgate + first + i * L);
    }
    auto gradient = [&](int j, vec<A>* out) {
      Ints<A> keep[NV] = {};
      if (masked) mask.of_key(j, keep);
      for (int i = 0; i < NV; ++i) {
        const int64_t at = ((j - a) * NV + i) * L;
        vec<A> x = load(s + at), g = load(dp + at), slope = splat(A{1});
        if (mod.softcap > 0) {
          x = soft_cap<A>(x, mod.softcap);
          const vec<A> t = x / mod.softcap;
          slope = 1 - t * t;
        }
        if (mod.key_weight) x += mod.key_weight[j];
        if (masked) {
          x = keep[i] ? x : splat(-kInfinity<A>);
          g = keep[i] ? g : vec<A>{};
          slope = keep[i] ? slope : vec<A>{};
        }
        const vec<A> weight = exp2v(x - row_lse[i]);
        gate_sum[i] += weight * g;
        out[i] = weight * (g * row_gate[i] - row_delta[i]) * slope;
      }
    };
    for (int j = a; j < b; j += kPair<T>) {
      vec<A> lo[NV], hi[NV] = {};
      gradient(j, lo);
      if constexpr (kPairRows<T>) {
        if (j + 1 < b) gradient(j + 1, hi);
        for (int i = 0; i < NV; ++i) store(ds + ((j - a) / 2 * NV + i) * L, make_pairs(lo[i], hi[i]));
      } else {
        for (int i = 0; i < NV; ++i) store(ds + ((j - a) * NV + i) * L, lo[i]);
      }
    }
    for (int i = 0; i < NV; ++i) store(dgate + first + i * L, gate_sum[i]);
  }

  template <int NV>
  void panel(int32_t first, int a, int b, bool masked, const Placed<T>& kt, const Placed<T>& vt, const Modifiers<A>& mod) {
    const int n = b - a;
    vec<A> unused[NV] = {};
    dot_panel<T, NV>(kt.data + a * kt.ld, kt.ld, n, depth, q + first * depth, static_cast<A>(p.scale * kLog2e), s, unused);
    dot_panel<T, NV>(vt.data + a * vt.ld, vt.ld, n, depth_v, dout + first * depth_v, A{1}, dp, unused);
    score_gradients<NV>(first, a, b, masked, mod);
    keys->accumulate(ds, NV * L, min_i32(NV * L, rows->rows - first), a, n, ones, dq + first * columns, columns);
  }

  void key_tile(const Sequence& seq) {
    const RowGroup& g = rows->group;
    auto tokens = [&](const View4& x, int64_t dim) {
      const In* base = static_cast<const In*>(x.data) + seq.batch * x.batch + g.head_kv * x.head + seq.k_token * x.token;
      return TokenRows<In>{base, x.token, dim, tile->run, tile->runs, tile->n, tile->position};
    };
    const Modifiers<A> mod = load_modifiers(p, seq, g.head_kv, *tile, key_weight, segment);
    bool placed = false;
    Placed<T> kt{}, vt{};
    for (int32_t first = 0; first < rows->rows; first += W) {
      const int32_t last = min_i32(first + W, rows->rows);
      const PanelReach reach = panel_reach(*rows, first, last);
      int a, b;
      clip_to_reach(*tile, reach, a, b);
      if (a >= b || (mod.segment && !segments_meet(*rows, first, last, segment, a, b))) continue;
      if (kPairRows<T>) a &= ~1;  // keys are paired from the tile's start
      const bool masked = needs_mask(*tile, a, b, reach, mod.segment);
      if (!placed) {
        kt = place_rows<T, In>(tokens(p.k, p.dim), k);
        vt = place_rows<T, In>(tokens(p.v, p.dim_v), v);
        keys->place(tokens(p.k, p.dim), &kt);
        placed = true;
      }
      if (masked) keys->check();
      if (last - first <= L) panel<1>(first, a, b, masked, kt, vt, mod);
      else panel<2>(first, a, b, masked, kt, vt, mod);
    }
  }

  void run(const Sequence& seq) {
    load_rows(seq);
    for_each_key_tile(p, rows->group, 0, seq.keys, tile_keys(p.dim, p.dim_v), *tile, [&](KeyTile&) { key_tile(seq); });
    for (int32_t r = 0; r < rows->rows; ++r) {
      const int64_t token = seq.q_token + rows->query_of(r), head = rows->head_of(r);
      In* to = static_cast<In*>(bp.dq.data) + seq.batch * bp.dq.batch + head * bp.dq.head + token * bp.dq.token;
      store_row(dq + r * columns, static_cast<A>(p.scale), to, p.dim);
      if (bp.dhead_gate) bp.dhead_gate[state.row(seq.batch, head, token)] = static_cast<float>(dgate[r]);
    }
  }
};

template <class In> inline void query_gradients(const AttendBackwardParams& bp, const BackwardRows<In>& state) {
  const RowItems items(bp.forward, false);
  Carve size{nullptr};
  QueryGradItem<In> probe(bp, state, size);
  parallel_items(items.count(), [&](int64_t index, int) {
    Carve c{static_cast<char*>(thread_scratch(size.used))};
    QueryGradItem<In> item(bp, state, c);
    Sequence seq;
    int64_t split;
    if (items.open(index, *item.rows, seq, split)) item.run(seq);
  });
}

ATTN_NAMESPACE_END
