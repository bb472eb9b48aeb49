// Attention forward: for each block of rows, walk the schedule's key tiles; scores, rule, online softmax, values.
#pragma once

#include "cpu/mask_panel.h"
#include "cpu/row_items.h"
#include "cpu/row_operand.h"
#include "cpu/softmax_panel.h"
#include "cpu/thin_walk.h"

ATTN_NAMESPACE_BEGIN

template <class In> struct ForwardItem {
  using T = Operand<In>;
  using A = Acc<T>;
  static constexpr int W = kPanel<T>, L = kLanes<T>;

  const AttendParams& p;
  const int64_t depth, columns;
  RowBlock* rows;
  KeyTile *tiles, *tile, *next_tile;  // two; the one that is worked on, and the one after it or null
  FetchAhead<In>* ahead;
  bool first_tile = true, values_placed, finishes = false;
  T *q, *k;
  ColumnOperand<T, In>* values;
  A *o, *m, *l, *s, *alpha, *key_weight;  // o is undefined in rows that have seen no key
  static_assert(kMaxRows <= 32 * W, "a bit for every panel");
  uint32_t summed = 0;                        // panels, a bit each, whose rows o holds
  const In **q_rows, **next_rows;             // addresses of the item's rows, and of those of the next one
  In** results;                               // addresses of a panel's result rows
  int32_t next_count = 0;                     // how many of the latter are known
  bool rows_near = false, keys_near = false;  // the thread's last item fetched the rows; and looked at the same keys
  T* weights;
  int32_t* segment;
  bool thin = false;  // few rows: features in lanes (thin_walk.h)
  ThinWalk<In> walk;
  A* sums;  // o, m and l of every kv head, where an item has several

  // `together`: kv heads whose few rows go through the keys in one item.
  ForwardItem(const AttendParams& params, int64_t together, Carve& c)
      : p(params), depth(depth_of<T>(params.dim)), columns(round_up_lanes<T>(params.dim_v)),
        walk(params, columns, together, c) {
    const int keys = tile_keys(p.dim, p.dim_v);
    rows = c.take<RowBlock>(1);
    tiles = c.take<KeyTile>(2);
    tile = next_tile = nullptr;
    ahead = c.take<FetchAhead<In>>(1);
    values = c.take<ColumnOperand<T, In>>(1);
    q = c.take<T>((kMaxRows + W) * depth);
    k = c.take<T>(keys * depth);
    T* value_columns = c.take<T>(keys * columns);
    if (c.base) values->scratch = value_columns;
    if (c.base) values->held = nullptr;
    o = c.take<A>((kMaxRows + W) * columns);
    m = c.take<A>(kMaxRows + 2 * W);
    l = c.take<A>(kMaxRows + 2 * W);
    s = c.take<A>(keys * W);
    weights = kPairRows<T> ? c.take<T>(keys * W) : reinterpret_cast<T*>(s);
    alpha = c.take<A>(W);
    key_weight = c.take<A>(keys);
    segment = c.take<int32_t>(keys);
    q_rows = c.take<const In*>(kMaxRows);
    next_rows = c.take<const In*>(kMaxRows);
    results = c.take<In*>(W);
    sums = c.take<A>(together > 1 ? together * sums_size() : 0);
  }

  int64_t sums_size() const { return kThinRowsAtMost * (columns + 2); }

  // The item's rows, which `rows` holds now. Of several kv heads it takes one after the other.
  void take_rows(const Sequence& seq) {
    list_query_rows(*rows, seq, p.q, q_rows);
    thin = kThinFits<A> && rows->rows <= thin_rows_at_most<In>(p);
    if (thin) {
      if (walk.heads > 0) {
        o = sums + walk.heads * sums_size();
        m = o + kThinRowsAtMost * columns;
        l = m + kThinRowsAtMost;
      }
      clear();
      walk.add_head(seq, *rows, q_rows, o, m, l);
      summed = ~0u;
      return;
    }
    // The other rows are fetched over the first panel's products.
    for (int32_t r = 0; !rows_near && r < min_i32(W, rows->rows); ++r) prefetch_row(q_rows[r], p.dim);
    clear();
  }

  // Makes o, m, l and `rows` those of the kv head that was taken as number `i`.
  void select(int64_t i) {
    if (!thin) return;
    o = walk.head[i].o;
    m = walk.head[i].m;
    l = walk.head[i].l;
    rows->group.head += (walk.head[i].index - rows->group.head_kv) * (p.heads / p.heads_kv);
    rows->group.head_kv = walk.head[i].index;
  }

  void clear() {
    for (int32_t r = 0; r < panels() * W; ++r) {
      m[r] = -kInfinity<A>;
      l[r] = 0;
    }
    summed = 0;
  }

  // Of panels that have seen no key.
  void clear_sums() {
    for (int64_t i = 0; i < panels(); ++i) {
      if (!(summed >> i & 1)) std::memset(o + i * W * columns, 0, W * columns * sizeof(A));
    }
    summed = ~0u;
  }

  void pack_queries(int32_t first) {
    const int32_t n = min_i32(W, rows->rows - first);
    pack_panel<T, In>([&](int64_t r) { return q_rows[first + r]; }, n, p.dim, q + first * depth, n <= L ? L : W);
  }

  // Scores of keys [a, b) of the tile, times c, into `to`, and their maximum. Only a cut run is masked.
  template <int NV, class C> void scores(int32_t first, int a, int b, bool cut, const PanelReach& reach,
                                         const RowOperand<T, In>& kt, const Modifiers<A>& mod, C c, A* to,
                                         vec<A>* top) {
    if (a >= b) return;
    vec<A> here[NV];
    for (int i = 0; i < NV; ++i) here[i] = splat(-kInfinity<A>);
    A* s_run = to;
    kt.for_runs(a, b, [&](const T* rows_k, int64_t ld, int n) {
      dot_panel<T, NV>(rows_k, ld, n, depth, q + first * depth, c, s_run, here, *ahead);
      s_run += n * NV * L;
    });
    if (cut || mod.softcap > 0 || mod.key_weight)
      modify_panel<A, NV>(to, a, b, *rows, first, *tile, mod, cut, reach, here);
    for (int i = 0; i < NV; ++i) top[i] = vmax(here[i], top[i]);
  }

  // Values are waited for after the first panel's scores.
  void place_values(const Sequence& seq, bool masked) {
    if (!values_placed) {
      const TokenRows<In> tokens = tile->rows(key_base<In>(p, p.v, seq, rows->group.head_kv), p.v, p.dim_v);
      if (!values->holds(tokens)) values->place(tokens, nullptr);
    }
    values_placed = true;
    if (masked) values->check();
  }

  // One panel of rows against its keys of the tile. True: they were its last and its results are written.
  template <int NV> bool panel(const Sequence& seq, int32_t first, const PanelKeys& keys, const PanelReach& reach,
                               const RowOperand<T, In>& kt, const Modifiers<A>& mod) {
    vec<A> top[NV];
    for (int i = 0; i < NV; ++i) top[i] = splat(-kInfinity<A>);
    // Whole dot blocks before, in and after the run that is cut.
    const int a = keys.a, b = keys.b, cut_a = a + (keys.cut_a - a) / kDotRows * kDotRows,
              cut_b =
                  keys.masked() ? min_i32(b, cut_a + (keys.cut_b - cut_a + kDotRows - 1) / kDotRows * kDotRows) : cut_a;
    const auto all_scores = [&](auto c) {
      scores<NV>(first, a, cut_a, false, reach, kt, mod, c, s, top);
      scores<NV>(first, cut_a, cut_b, true, reach, kt, mod, c, s + (cut_a - a) * NV * L, top);
      scores<NV>(first, cut_b, b, false, reach, kt, mod, c, s + (cut_b - a) * NV * L, top);
    };
    // Softmax multiplies by the scale for free, but what is modified has to be a logit, and -inf to stay what it is.
    const A scale = static_cast<A>(p.scale * kLog2e);
    const bool logits = mod.softcap > 0 || mod.key_weight || !(scale > 0);
    if (logits) all_scores(scale);
    else all_scores(Unscaled{});
    softmax_panel<T, NV, true>(s, b - a, top, logits ? A{1} : scale, m + first, l + first, alpha, weights);
    place_values(seq, keys.masked());
    const uint32_t bit = 1u << first / W;
    const int32_t lanes = min_i32(NV * L, rows->rows - first);
    const A* rescale = summed & bit ? alpha : nullptr;
    if (finishes && !next_tile && values->writes_rows()) {
      A factor[W];
      close(seq, first, first + lanes, factor);
      values->write_rows(weights, NV * L, lanes, a, b - a, rescale, o + first * columns, columns, factor, results);
      return true;
    }
    values->accumulate(weights, NV * L, lanes, a, b - a, rescale, o + first * columns, columns);
    summed |= bit;
    return false;
  }

  // The first keys of the next split, which this thread is likely to work on next: to be fetched over the last ones of
  // this split: fewer than a tile has room for, so that the tile is complete only when all are in it. Null where it is
  // the sequence's last split.
  KeyTile* thin_beyond(const Sequence& seq, int32_t k_hi) {
    if (!thin || k_hi >= seq.keys) return nullptr;
    KeyTile *const free = tile == tiles ? tiles + 1 : tiles, *found = nullptr;
    const int32_t keys = thin_panel_keys<In>(p.dim, p.dim_v), end = k_hi + min_i32(keys, seq.keys - k_hi);
    fill_key_tiles(p, rows->group, k_hi, end, {kTileKeys, 1, false}, free, [&](KeyTile* full) { return found = full; });
    return found;
  }

  void key_tile(const Sequence& seq) {
    if (thin) {
      if constexpr (kThinFits<A>) walk.tile(seq, *tile, next_tile, first_tile);
      first_tile = false;
      return;
    }
    const RowGroup& g = rows->group;
    const Modifiers<A> mod = load_modifiers(p, seq, g.head_kv, *tile, key_weight, segment);
    bool placed = values_placed = false;
    RowOperand<T, In> kt{};
    bool fetched = fetch_ahead(seq);  // what comes after the tile?
    for (int32_t first = 0; first < rows->rows; first += W) {
      const int32_t last = min_i32(first + W, rows->rows);
      const PanelReach reach = panel_reach(*rows, first, last);
      // Values are paired from the tile's start.
      const PanelKeys keys = panel_keys(*tile, *rows, first, last, reach, mod, kPairRows<T>);
      const bool sees =
          keys.a < keys.b && !(mod.segment && !segments_meet(*rows, first, last, segment, keys.a, keys.b));
      bool written = false;
      if (first_tile) pack_queries(first);
      if (sees) {
        if (!placed) {
          kt.place(tile->rows(key_base<In>(p, p.k, seq, g.head_kv), p.k, p.dim), k);
          placed = true;
        }
        if (finishes && !next_tile) list_results(seq, first, last);
        written =
            last - first <= L ? panel<1>(seq, first, keys, reach, kt, mod) : panel<2>(seq, first, keys, reach, kt, mod);
        if (!fetched) fetch_next(seq, first / W + 1);
        fetched = true;
      }
      if (finishes && !next_tile && !written) finish(seq, first, last);
    }
    first_tile = false;
  }

  int64_t panels() const { return (rows->rows + W - 1) / W; }

  // Spreads fetching over the products of a tile: of the tile after it. Nobody has fetched the first one, so that one
  // is fetched over its own first panel, if there are more, its first rows at once, and the item's other rows too.
  // Has fetching of what comes after the tile begun?
  bool fetch_ahead(const Sequence& seq) {
    ahead->stop();
    if (first_tile && !rows_near && panels() > 1) {
      ahead->queries.start(q_rows, W, rows->rows, p.dim, tile->n / kDotRows > 1 ? tile->n / kDotRows : 1);
    }
    if (first_tile && !keys_near) {
      const TokenRows<In> keys = tile->rows(key_base<In>(p, p.k, seq, rows->group.head_kv), p.k, p.dim),
                          values = tile->rows(key_base<In>(p, p.v, seq, rows->group.head_kv), p.v, p.dim_v);
      const int32_t at_once = panels() > 1 ? min_i32(tile->n, 3 * kDotRows) : tile->n;
      for (int32_t i = 0; i < at_once; ++i) keys.template fetch<2>(i);
      for (int32_t i = 0; i < at_once; ++i) values.template fetch<2>(i);
      if (panels() > 1) ahead->start(keys, values, at_once, (tile->n - at_once + kDotRows - 1) / kDotRows);
    }
    const bool begins = !first_tile || panels() == 1 || keys_near;
    if (begins) fetch_next(seq, 0);
    return begins;
  }

  // Fetches the next tile over the products of panels from `panel` on, or the next item's rows.
  void fetch_next(const Sequence& seq, int64_t panel) {
    const int64_t steps = (panels() - panel) * ((tile->n + kDotRows - 1) / kDotRows);
    if (!next_tile) return ahead->queries.start(next_rows, 0, next_count, p.dim, steps);
    ahead->start(next_tile->rows(key_base<In>(p, p.k, seq, rows->group.head_kv), p.k, p.dim),
                 next_tile->rows(key_base<In>(p, p.v, seq, rows->group.head_kv), p.v, p.dim_v), 0, steps);
  }

  bool gated_off(const Sequence& seq) const {
    if (!p.skip_gated || !p.head_gate.data) return false;
    for (int32_t r = 0; r < rows->rows; ++r) {
      if (gate(seq, r) != 0) return false;
    }
    return true;
  }

  float gate(const Sequence& seq, int32_t r) const {
    return static_cast<const float*>(
        p.head_gate.data)[seq.batch * p.head_gate.batch + rows->head_of(r) * p.head_gate.head +
                          (seq.q_token + rows->query_of(r)) * p.head_gate.token];
  }

  // Sums of the rows that were taken over keys [k_lo, k_hi), `capacity` of them a tile; with `writes` also puts out and
  // lse where they belong.
  void attend(const Sequence& seq, int32_t k_lo, int32_t k_hi, int capacity, bool writes) {
    finishes = writes && !thin;
    const TileShape shape{capacity, thin ? thin_panel_keys<In>(p.dim, p.dim_v) : 1, !thin};
    for_each_key_tile_ahead(p, rows->group, k_lo, k_hi, shape, tiles, [&](KeyTile& now, KeyTile* next) {
      tile = &now;
      next_tile = next ? next : thin_beyond(seq, k_hi);
      key_tile(seq);
    });
    if (thin) walk.finish();
    for (int i = 0; writes && i < walk.heads; ++i) {
      select(i);
      finish(seq);
    }
    if (writes && !thin && !tile) finish(seq);  // else every panel is finished in the last tile
  }

  void finish(const Sequence& seq) {
    for (int32_t first = 0; first < rows->rows; first += W) finish(seq, first, min_i32(first + W, rows->rows));
  }

  // Writes out and lse of a panel's rows from accumulators o, m, l.
  void finish(const Sequence& seq, int32_t first, int32_t last) {
    A factor[W];
    close(seq, first, last, factor);
    const bool some = summed >> first / W & 1;
    list_results(seq, first, last);
    for (int32_t r = first; r < last; ++r) {
      In* to = results[r - first];
      if (some) store_row(o + r * columns, factor[r - first], to, p.dim_v);
      else std::memset(static_cast<void*>(to), 0, p.dim_v * sizeof(In));
    }
  }

  void list_results(const Sequence& seq, int32_t first, int32_t last) {
    rows->for_heads(first, last, [&](int32_t r, int32_t n, int32_t head, int32_t query) {
      In* at = static_cast<In*>(p.out.data) + seq.batch * p.out.batch + head * p.out.head +
               (seq.q_token + query) * p.out.token;
      for (int32_t i = 0; i < n; ++i, at += p.out.token) results[r - first + i] = at;
    });
  }

  // Writes lse of a panel's rows. Their sums times `factor` are the result.
  void close(const Sequence& seq, int32_t first, int32_t last, A* factor) {
    A lse[W], sink[W];
    if (p.sink_logits) {
      for (int32_t i = 0; i < W; ++i) sink[i] = -kInfinity<A>;
      rows->for_rows(first, last, [&](int32_t r, int32_t head, int32_t) {
        sink[r - first] = static_cast<A>(p.sink_logits[head] * kLog2e);
      });
    }
    finish_rows(m + first, l + first, p.sink_logits ? sink : nullptr, W, factor, lse);
    for (int32_t r = first; p.head_gate.data && r < last; ++r) factor[r - first] *= gate(seq, r);
    rows->for_heads(first, last, [&](int32_t r, int32_t n, int32_t head, int32_t query) {
      A* to = static_cast<A*>(p.lse) + (seq.batch * p.heads + head) * p.tq + seq.q_token + query;
      for (int32_t i = 0; i < n; ++i) to[i] = lse[r - first + i];
    });
  }

  void finish_gated_off(const Sequence& seq) {
    clear();
    finish(seq);
  }
};

ATTN_NAMESPACE_END
