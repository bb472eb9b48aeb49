// Backward pass. An item owns a range of keys of one kv head: it visits every row tile that looks at them, sums their
// dK and dV (and the gradient of their weights) on its own, and adds its share of dQ to the rows in turn (dq_sums.h).
// Scores and dP are computed once: five products. Keys lie in lanes; query rows run along the strip.
#pragma once

#include "cpu/backward_plan.h"
#include "cpu/dq_sums.h"
#include "cpu/score_gradients.h"

ATTN_NAMESPACE_BEGIN

// Keys an item owns. Dense: one key tile, whose packed form then serves every row tile, and as long as fits, since each
// item reads all rows and adds to all their dQ. Block schedules: whole blocks, for the same reason. Gathered keys are
// scattered anyway: a range long enough for a selection to fill key tiles.
inline int32_t key_range(const AttendParams& p) {
  if (p.schedule == ScheduleKind::gathered) return 2048;
  const int32_t keys = tile_keys(p.dim, p.dim_v);
  if (p.schedule == ScheduleKind::range) return keys;
  const int32_t dense = keys == kTileKeys ? 128 : 64;
  const int32_t block = static_cast<int32_t>(p.schedule == ScheduleKind::layout ? p.layout.block_k : p.strided.block);
  return block >= 64 ? (block <= 128 ? block : dense) : (64 + block - 1) / block * block;
}

template <class In> struct BackwardItem {
  using T = Operand<In>;
  using A = Acc<T>;
  static constexpr int W = kPanel<T>, L = kLanes<T>;
  static constexpr int kChunk = ScoreGradients<T>::kChunk;

  const AttendBackwardParams& bp;
  const AttendParams& p;
  const BackwardRows<In>& state;
  DqSums<In>& dq;
  const int64_t depth, depth_v, columns, columns_v;
  const int32_t range;
  const bool want_queries, want_keys;  // dQ; dK and dV
  int32_t k_begin = 0, k_end = 0;      // the item's keys
  int32_t packed_begin, packed_n;      // run of keys that lies in k, v and k_columns; n = 0: none
  Run packed_run;
  bool panel_packed[kTileKeys / L + 1];
  RowBlock* rows;
  KeyTile* tile;
  T *k, *v, *q, *dout;
  ColumnOperand<T, In>*q_columns, *dout_columns, *k_columns;
  A *dk, *dv, *tile_dk, *tile_dv, *ones, *key_weight;
  PanelReach reach[kMaxRows / kChunk];  // of each chunk of rows
  int32_t* segment;
  ScoreGradients<T> gradients;

  BackwardItem(const AttendBackwardParams& params, const BackwardRows<In>& rows_state, DqSums<In>& dq_sums, Carve& c)
      : bp(params), p(params.forward), state(rows_state), dq(dq_sums), depth(depth_of<T>(p.dim)),
        depth_v(depth_of<T>(p.dim_v)), columns(round_up_lanes<T>(p.dim)), columns_v(round_up_lanes<T>(p.dim_v)),
        range(key_range(params.forward)), want_queries(params.dq.data), want_keys(params.dk.data),
        rows(c.take<RowBlock>(1)), tile(c.take<KeyTile>(1)),
        gradients(params, rows, tile, tile_keys(p.dim, p.dim_v), range, c) {
    const int n = tile_keys(p.dim, p.dim_v);
    q_columns = c.take<ColumnOperand<T, In>>(1);
    dout_columns = c.take<ColumnOperand<T, In>>(1);
    k_columns = c.take<ColumnOperand<T, In>>(1);
    k = c.take<T>((n + W) * depth);
    v = c.take<T>((n + W) * depth_v);
    q = c.take<T>(kMaxRows * (kPairRows<T> ? depth : padded_columns<T>(p.dim)));
    dout = c.take<T>(kMaxRows * (kPairRows<T> ? depth_v : padded_columns<T>(p.dim_v)));
    T* q_scratch = c.take<T>(kMaxRows * padded_columns<T>(p.dim));
    T* dout_scratch = c.take<T>(kMaxRows * padded_columns<T>(p.dim_v));
    T* k_scratch = c.take<T>(n * padded_columns<T>(p.dim));
    if (c.base) {
      q_columns->scratch = q_scratch;
      dout_columns->scratch = dout_scratch;
      k_columns->scratch = k_scratch;
    }
    dk = c.take<A>((range + W) * columns);
    dv = c.take<A>((range + W) * columns_v);
    tile_dk = c.take<A>((n + W) * columns);
    tile_dv = c.take<A>((n + W) * columns_v);
    ones = c.take<A>(W);
    key_weight = c.take<A>(n + W);
    segment = c.take<int32_t>(n + W);
  }

  TokenRows<In> row_tokens(const View4& x, const Sequence& seq, int64_t dim, const Run& run) const {
    const In* base =
        static_cast<const In*>(x.data) + seq.batch * x.batch + rows->group.head * x.head + seq.q_token * x.token;
    return {base, 0, x.token, dim, &run, 1, run.count, nullptr, nullptr};
  }

  const In* key_row(const View4& x, const Sequence& seq, int64_t lane) const {
    return static_cast<const In*>(x.data) + seq.batch * x.batch + rows->group.head_kv * x.head +
           (seq.k_token + tile->position[lane]) * x.token;
  }

  // Rows as the operand of both kinds of products; one copy serves both unless the elements are pairs.
  static Placed<T> place(const TokenRows<In>& tokens, T* as_rows, ColumnOperand<T, In>& as_columns) {
    if constexpr (kPairRows<T>) {
      as_columns.pack(tokens);
      return place_rows<T, In>(tokens, as_rows);
    } else {
      const Placed<T> at{as_rows, padded_columns<T>(tokens.dim)};
      copy_columns<T, In>(tokens, as_rows, at.ld);
      as_columns.use(tokens, at);
      return at;
    }
  }

  // Keys of the tile as panels. A range that is one run keeps them from row tile to row tile.
  void pack_keys(const Sequence& seq, int32_t first, int32_t count, int64_t width) {
    const int32_t which = first / W;
    if (panel_packed[which]) return;
    panel_packed[which] = true;
    pack_panel<T, In>([&](int64_t r) { return key_row(p.k, seq, first + r); }, count, p.dim, k + first * depth, width);
    pack_panel<T, In>([&](int64_t r) { return key_row(p.v, seq, first + r); }, count, p.dim_v, v + first * depth_v,
                      width);
  }

  void forget_keys() { std::memset(panel_packed, 0, sizeof panel_packed); }

  // Keys [first, first + count) of the tile against the rows that can see any of them; true if some row doesn't see
  // some key.
  template <int NV>
  bool panel(const Sequence& seq, int32_t first, int32_t count, const Placed<T>& qt, const Placed<T>& dt,
             const Modifiers<A>& mod) {
    const int32_t low = tile->position[first], high = tile->position[first + count - 1];
    int a = 0, b = rows->rows;
    while (a < b && (tile->any_exempt ? max_i32(rows->hi[a], rows->cap[a]) : rows->hi[a]) < low) ++a;
    while (!tile->any_exempt && b > a && rows->lo[b - 1] > high) --b;
    if (a >= b || (mod.segment && !segments_meet(*rows, a, b, segment, first, first + count))) {
      gradients.clear(first, NV * L, 0, rows->rows);
      return true;
    }
    if (kPairRows<T>) a &= ~1;  // rows are paired from the tile's start
    pack_keys(seq, first, count, NV * L);
    const int n = b - a;
    bool masked = false;
    for (int c = a / kChunk * kChunk; c < b; c += kChunk) {
      const int from = max_i32(a, c), to = min_i32(b, c + kChunk);
      // Padding lanes must not touch the next keys' sums, so a short panel is masked too.
      const bool cut = count < NV * L || needs_mask(*tile, first, first + count, reach[c / kChunk], mod);
      product_panel<T, NV>(qt.data + from * qt.ld, qt.ld, to - from, depth, k + first * depth, gradients.s);
      product_panel<T, NV>(dt.data + from * dt.ld, dt.ld, to - from, depth_v, v + first * depth_v, gradients.dp);
      gradients.template panel<NV>(first, count, a, from, to, cut, mod);
      masked |= cut;
    }
    gradients.clear(first, NV * L, 0, a);
    gradients.clear(first, NV * L, b, rows->rows);
    if (masked) {
      q_columns->check();
      dout_columns->check();
    }
    const bool unseen = masked || n < rows->rows;
    if (!want_keys) return unseen;
    // One run of keys adds straight into the item's sums; scattered keys go through the tile's own.
    const bool direct = tile->runs == 1;
    A* to_k = direct ? dk + (low - k_begin) * columns : tile_dk + first * columns;
    A* to_v = direct ? dv + (low - k_begin) * columns_v : tile_dv + first * columns_v;
    dout_columns->accumulate(gradients.weights, NV * L, count, a, n, ones, to_v, columns_v);
    if constexpr (kPairRows<T>) q_columns->accumulate(gradients.ds, NV * L, count, a, n, ones, to_k, columns);
    else
      q_columns->accumulate(gradients.ds_rows + a * gradients.ds_width + first, gradients.ds_width, count, a, n, ones,
                            to_k, columns);
    return unseen;
  }

  // `turn` is this item's place in the order in which the row tile's dQ is summed.
  void row_tile(const Sequence& seq, DqTurn& turn) {
    const int capacity = tile_keys(p.dim, p.dim_v);
    const Run run{0, rows->group.q_begin, rows->rows};
    bool placed = false;
    Placed<T> qt{}, dt{};
    std::memset(gradients.gate_sum, 0, kMaxRows * sizeof(A));
    for_each_key_tile(p, rows->group, k_begin, k_end, capacity, *tile, [&](KeyTile& t) {
      if (!placed) {
        const TokenRows<In> q_tokens = row_tokens(p.q, seq, p.dim, run),
                            d_tokens = row_tokens(bp.dout, seq, p.dim_v, run);
        qt = place(q_tokens, q, *q_columns);
        dt = place(d_tokens, dout, *dout_columns);
        for (int c = 0; c * kChunk < rows->rows; ++c)
          reach[c] = panel_reach(*rows, c * kChunk, min_i32((c + 1) * kChunk, rows->rows));
        state.load_block(seq, *rows, gradients.lse2, gradients.delta, gradients.gate);
        placed = true;
      }
      const Modifiers<A> mod = load_modifiers(p, seq, rows->group.head_kv, t, key_weight, segment);
      const bool direct = t.runs == 1;
      if (!direct || t.run[0].begin != packed_begin || t.n != packed_n) {
        forget_keys();
        k_columns->pack(t.rows(key_base<In>(p, p.k, seq, rows->group.head_kv), p.k, p.dim));
        packed_run = t.run[0];
        if (direct) k_columns->rows.run = &packed_run;
      }
      packed_begin = t.run[0].begin;
      packed_n = direct ? t.n : 0;
      if (!direct) {
        std::memset(tile_dk, 0, (t.n + W) * columns * sizeof(A));
        std::memset(tile_dv, 0, (t.n + W) * columns_v * sizeof(A));
      }
      bool unseen = false;
      for (int32_t first = 0; first < t.n; first += W) {
        const int32_t count = min_i32(W, t.n - first);
        if (want_queries) prefetch_dq(seq, first, t.n);
        if (count <= L) unseen |= panel<1>(seq, first, count, qt, dt, mod);
        else unseen |= panel<2>(seq, first, count, qt, dt, mod);
      }
      if (!direct && want_keys) scatter(t);
      if (unseen) k_columns->check();
      if (!want_queries) return;
      turn.wait();
      const int32_t head = static_cast<int32_t>(rows->group.head);
      k_columns->add_to_rows(gradients.ds_rows, gradients.ds_width, rows->rows, dq.row(seq, head, rows->group.q_begin),
                             dq.stride);
    });
    if (!want_queries) return;
    turn.wait();
    if (bp.dhead_gate) {
      float* to = bp.dhead_gate + state.row(seq.batch, rows->group.head, seq.q_token + rows->group.q_begin);
      for (int32_t r = 0; r < rows->rows; ++r) to[r] += static_cast<float>(gradients.gate_sum[r]);
    }
  }

  // The rows' dQ was last touched an item ago: fetches the share of it that falls to the panel at `first` of `n` keys.
  void prefetch_dq(const Sequence& seq, int32_t first, int32_t n) const {
    const int32_t head = static_cast<int32_t>(rows->group.head), end = min_i32(first + W, n);
    for (int32_t r = rows->rows * first / n; r < rows->rows * end / n; ++r) {
      const A* row = dq.row(seq, head, rows->group.q_begin + r);
      for (int64_t x = 0; x < columns; x += 64 / sizeof(A)) __builtin_prefetch(row + x, 1, 2);
    }
  }

  void scatter(const KeyTile& t) {
    for (int32_t i = 0; i < t.n; ++i) {
      A* to_k = dk + (t.position[i] - k_begin) * columns;
      A* to_v = dv + (t.position[i] - k_begin) * columns_v;
      for (int64_t x = 0; x < columns; x += L) store(to_k + x, load(to_k + x) + load(tile_dk + i * columns + x));
      for (int64_t x = 0; x < columns_v; x += L) store(to_v + x, load(to_v + x) + load(tile_dv + i * columns_v + x));
    }
  }

  void run(const BackwardPlan& plan, int64_t index, const Sequence& seq, int64_t which, int64_t head_kv, int64_t part) {
    k_begin = static_cast<int32_t>(part * range);
    k_end = k_begin + min_i32(range, seq.keys - k_begin);
    gradients.key_begin = k_begin;
    packed_n = 0;
    packed_begin = 0;
    std::memset(dk, 0, (range + W) * columns * sizeof(A));
    std::memset(dv, 0, (range + W) * columns_v * sizeof(A));
    std::memset(gradients.key_sum, 0, (range + W) * sizeof(A));
    for (int i = 0; i < W; ++i) ones[i] = 1;
    const RowTiling tiling = row_tiling(p, seq.queries, seq.keys, kMaxRows);
    const int64_t group = p.heads / p.heads_kv;
    for (int64_t head = head_kv * group; head < (head_kv + 1) * group; ++head) {
      plan.for_each(index, head, [&](TileVisit visit) {
        open_rows(p, tiling, seq, head, 1, visit.tile, *rows);
        DqTurn turn(dq, want_queries ? dq.tile(which, head, visit.tile) : nullptr, visit.turn);
        row_tile(seq, turn);
      });
    }
    if (!want_keys) return;
    auto at = [&](const View4& x, int32_t i) {
      return static_cast<In*>(x.data) + seq.batch * x.batch + head_kv * x.head + (seq.k_token + k_begin + i) * x.token;
    };
    for (int32_t i = 0; i < k_end - k_begin; ++i) {
      store_row(dk + i * columns, static_cast<A>(p.scale), at(bp.dk, i), p.dim);
      store_row(dv + i * columns_v, A{1}, at(bp.dv, i), p.dim_v);
      if (bp.dkey_log_weight) {
        bp.dkey_log_weight[(seq.batch * p.heads_kv + head_kv) * p.tk + seq.k_token + k_begin + i] =
            static_cast<float>(gradients.key_sum[i]);
      }
    }
  }
};

ATTN_NAMESPACE_END
