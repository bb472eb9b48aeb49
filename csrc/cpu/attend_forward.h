// Attention forward: for each block of rows, walk the schedule's key tiles; scores, rule, online softmax, values.
#pragma once

#include "attn/parallel.h"
#include "cpu/mask_panel.h"
#include "cpu/row_items.h"
#include "cpu/row_operand.h"
#include "cpu/softmax_panel.h"
#include "cpu/thin_panel.h"

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
  bool first_tile = true, values_placed;
  T *q, *k;
  ColumnOperand<T, In>* values;
  A *o, *m, *l, *s, *alpha, *key_weight;
  T* weights;
  int32_t* segment;
  bool thin;                                  // few rows: features in lanes (thin_panel.h)
  typename ThinOperand<In>::Element* thin_q;  // [kThinRowsAtMost][thin_width]
  A* thin_s;                                  // [kThinPanel][kThinRows]
  const In **thin_list, **thin_rows;          // addresses of this tile's rows, then of those to fetch (thin_rows.h)
  int thin_listed;                            // keys of this tile; 0 before the first

  ForwardItem(const AttendParams& params, Carve& c)
      : p(params), depth(depth_of<T>(params.dim)), columns(round_up_lanes<T>(params.dim_v)) {
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
    o = c.take<A>((kMaxRows + W) * columns);
    m = c.take<A>(kMaxRows + 2 * W);
    l = c.take<A>(kMaxRows + 2 * W);
    s = c.take<A>(keys * W);
    weights = kPairRows<T> ? c.take<T>(keys * W) : reinterpret_cast<T*>(s);
    alpha = c.take<A>(W);
    key_weight = c.take<A>(keys);
    segment = c.take<int32_t>(keys);
    thin_q = c.take<typename ThinOperand<In>::Element>(kThinRowsAtMost * thin_width<In>(p.dim));
    thin_s = c.take<A>(kThinPanel * kThinRows);
    thin_list = thin_rows = c.take<const In*>(kThinListed * 2 * keys + kThinAheadRows);
    thin_listed = 0;
    thin = false;
  }

  const In* q_row(const Sequence& seq, int32_t r) const {
    return static_cast<const In*>(p.q.data) + seq.batch * p.q.batch + rows->head_of(r) * p.q.head +
           (seq.q_token + rows->query_of(r)) * p.q.token;
  }

  void load_queries(const Sequence& seq) {
    thin = kThinFits<A> && rows->rows <= kThinRowsAtMost;
    if (thin) {
      const int64_t width = thin_width<In>(p.dim);
      std::memset(static_cast<void*>(thin_q), 0, kThinRowsAtMost * width * sizeof *thin_q);
      for (int32_t r = 0; r < rows->rows; ++r) thin_query(q_row(seq, r), p.dim, thin_q + r * width);
    }
    for (int32_t r = 0; !thin && r < rows->rows; ++r) prefetch_row(q_row(seq, r), p.dim);
    for (int32_t first = 0; !thin && first < rows->rows; first += W) {
      const int32_t n = min_i32(W, rows->rows - first);
      pack_panel<T, In>([&](int64_t r) { return q_row(seq, first + static_cast<int32_t>(r)); }, n, p.dim,
                        q + first * depth, n <= L ? L : W);
    }
    const int32_t padded = (rows->rows + W - 1) / W * W;
    for (int32_t r = 0; r < padded; ++r) {
      m[r] = -kInfinity<A>;
      l[r] = 0;
    }
    std::memset(o, 0, padded * columns * sizeof(A));
  }

  // Scores of keys [a, b) of the tile into `to`, and their maximum. Only a cut run is masked.
  template <int NV> void scores(int32_t first, int a, int b, bool cut, const PanelReach& reach,
                                const RowOperand<T, In>& kt, const Modifiers<A>& mod, A* to, vec<A>* top) {
    if (a >= b) return;
    vec<A> here[NV];
    for (int i = 0; i < NV; ++i) here[i] = splat(-kInfinity<A>);
    A* s_run = to;
    kt.for_runs(a, b, [&](const T* rows_k, int64_t ld, int n) {
      dot_panel<T, NV>(rows_k, ld, n, depth, q + first * depth, static_cast<A>(p.scale * kLog2e), s_run, here, *ahead);
      s_run += n * NV * L;
    });
    if (cut || mod.softcap > 0 || mod.key_weight)
      modify_panel<A, NV>(to, a, b, *rows, first, *tile, mod, cut, reach, here);
    for (int i = 0; i < NV; ++i) top[i] = vmax(here[i], top[i]);
  }

  // Values are waited for after the first panel's scores.
  void place_values(const Sequence& seq, bool masked) {
    if (!values_placed)
      values->place(tile->rows(key_base<In>(p, p.v, seq, rows->group.head_kv), p.v, p.dim_v), nullptr);
    values_placed = true;
    if (masked) values->check();
  }

  // One panel of rows against its keys of the tile.
  template <int NV> void panel(const Sequence& seq, int32_t first, const PanelKeys& keys, const PanelReach& reach,
                               const RowOperand<T, In>& kt, const Modifiers<A>& mod) {
    vec<A> top[NV];
    for (int i = 0; i < NV; ++i) top[i] = splat(-kInfinity<A>);
    // Whole dot blocks before, in and after the run that is cut.
    const int a = keys.a, b = keys.b, cut_a = a + (keys.cut_a - a) / kDotRows * kDotRows,
              cut_b =
                  keys.masked() ? min_i32(b, cut_a + (keys.cut_b - cut_a + kDotRows - 1) / kDotRows * kDotRows) : cut_a;
    scores<NV>(first, a, cut_a, false, reach, kt, mod, s, top);
    scores<NV>(first, cut_a, cut_b, true, reach, kt, mod, s + (cut_a - a) * NV * L, top);
    scores<NV>(first, cut_b, b, false, reach, kt, mod, s + (cut_b - a) * NV * L, top);
    softmax_panel<T, NV>(s, b - a, top, m + first, l + first, alpha, weights);
    place_values(seq, keys.masked());
    values->accumulate(weights, NV * L, min_i32(NV * L, rows->rows - first), a, b - a, alpha, o + first * columns,
                       columns);
  }

  // The rows that were listed as the next tile's are this one's now, and those of the tile after it are listed. Past
  // the last row it stands in for what to fetch, which costs nothing.
  void list_thin_rows(const Sequence& seq) {
    const int64_t head = rows->group.head_kv, dim = p.dim < p.dim_v ? p.dim : p.dim_v;
    auto list = [&](const KeyTile& t, const In** at) {
      list_panels(t.rows(key_base<In>(p, p.k, seq, head), p.k, p.dim),
                  t.rows(key_base<In>(p, p.v, seq, head), p.v, p.dim_v), at);
    };
    int end = 2 * tile->n;
    if (thin_listed) {
      thin_rows += 2 * thin_listed;
      if (next_tile && thin_rows + end + 2 * next_tile->n > thin_list + kThinListed * 2 * tile_keys(p.dim, p.dim_v)) {
        std::memmove(thin_list, thin_rows, end * sizeof *thin_rows);
        thin_rows = thin_list;
      }
    } else {
      list(*tile, thin_rows);
      for (int i = 0; i < end && i < thin_ahead(); ++i) prefetch_row(thin_rows[i], dim);
    }
    if (next_tile) {
      list(*next_tile, thin_rows + end);
      if (next_tile->runs > 1) touch_pages(thin_rows + end, 2 * next_tile->n, dim);
      end += 2 * next_tile->n;
    }
    if (!next_tile || 2 * next_tile->n < kThinAheadRows)
      for (int i = 0; i < kThinAheadRows; ++i) thin_rows[end + i] = thin_rows[end - 1];
    thin_listed = tile->n;
  }

  // The first keys of the next split, which this thread is likely to work on next: to be fetched over the last ones of
  // this split. Null where it is the sequence's last.
  KeyTile* thin_beyond(const Sequence& seq, int32_t k_hi) {
    if (!thin || k_hi >= seq.keys) return nullptr;
    KeyTile *const free = tile == tiles ? tiles + 1 : tiles, *found = nullptr;
    const int32_t end = k_hi + min_i32(kThinPanel, static_cast<int32_t>(seq.keys) - k_hi);
    fill_key_tiles(p, rows->group, k_hi, end, kThinPanel, free, [&](KeyTile* full) { return found = full; });
    return found;
  }

  int thin_ahead() const { return rows_of_bytes<In>(kThinAhead, p.dim > p.dim_v ? p.dim : p.dim_v); }

  // kThinRows rows from `first` on against keys [a, b) of the tile's panel [begin, end).
  void thin_panel(int32_t first, int begin, int end, int a, int b, bool masked, const PanelReach& reach,
                  const Modifiers<A>& mod) {
    const int n = b - a;
    const In *const *k = thin_rows + begin + a, *const *v = k + (end - begin), *const *later = k + thin_ahead();
    thin_dot<In, A>(k, later, n, p.dim, thin_q + first * thin_width<In>(p.dim), static_cast<A>(p.scale * kLog2e),
                    thin_s);
    if (masked || mod.softcap > 0 || mod.key_weight) {
      vec<A> top[1];
      thin_spread(thin_s, n, s);
      modify_panel<A, 1>(s, a, b, *rows, first, *tile, mod, masked, reach, top);
      thin_gather(s, n, thin_s);
    }
    thin_softmax(thin_s, n, m + first, l + first, alpha);
    thin_acc<In, A>(v, later + (end - begin), n, p.dim_v, masked, thin_s, alpha, o + first * columns, columns);
  }

  // The tile, panel by panel; all rows of a panel while it lies in L1.
  void thin_tile(const Sequence& seq, const Modifiers<A>& mod) {
    list_thin_rows(seq);
    constexpr int kGroups = kThinRowsAtMost / kThinRows;
    PanelReach reach[kGroups];
    PanelKeys keys[kGroups];
    int groups = 0;
    for (int32_t first = 0; first < rows->rows; first += kThinRows, ++groups) {
      const int32_t last = min_i32(first + kThinRows, rows->rows);
      PanelKeys& k = keys[groups];
      reach[groups] = panel_reach(*rows, first, last);
      k = panel_keys(*tile, *rows, first, last, reach[groups], mod, false);
      if (k.a < k.b && mod.segment && !segments_meet(*rows, first, last, segment, k.a, k.b)) k.b = k.a;
    }
    for (int begin = 0; begin < tile->n; begin += kThinPanel) {
      const int end = min_i32(begin + kThinPanel, tile->n);
      for (int g = 0; g < groups; ++g) {
        const int a = max_i32(begin, keys[g].a), b = min_i32(end, keys[g].b);
        const bool masked = max_i32(a, keys[g].cut_a) < min_i32(b, keys[g].cut_b);
        if (a < b) thin_panel(g * kThinRows, begin, end, a, b, masked, reach[g], mod);
      }
    }
  }

  void key_tile(const Sequence& seq) {
    const RowGroup& g = rows->group;
    const Modifiers<A> mod = load_modifiers(p, seq, g.head_kv, *tile, key_weight, segment);
    if (thin) {
      if constexpr (kThinFits<A>) thin_tile(seq, mod);
      return;
    }
    bool placed = values_placed = false;
    RowOperand<T, In> kt{};
    fetch_ahead(seq);
    for (int32_t first = 0; first < rows->rows; first += W) {
      const int32_t last = min_i32(first + W, rows->rows);
      const PanelReach reach = panel_reach(*rows, first, last);
      // Values are paired from the tile's start.
      const PanelKeys keys = panel_keys(*tile, *rows, first, last, reach, mod, kPairRows<T>);
      if (keys.a >= keys.b || (mod.segment && !segments_meet(*rows, first, last, segment, keys.a, keys.b))) continue;
      if (!placed) {
        kt.place(tile->rows(key_base<In>(p, p.k, seq, g.head_kv), p.k, p.dim), k);
        placed = true;
      }
      if (last - first <= L) panel<1>(seq, first, keys, reach, kt, mod);
      else panel<2>(seq, first, keys, reach, kt, mod);
      if (first_tile && panels() > 1) fetch_next(seq, first / W + 1);
      first_tile = false;
    }
  }

  int64_t panels() const { return (rows->rows + W - 1) / W; }

  // Spreads fetching over the products of a tile: of the tile after it. Nobody has fetched the first one, so that one
  // is fetched over its own first panel, if there are more, its first rows at once.
  void fetch_ahead(const Sequence& seq) {
    ahead->rows = ahead->next = 0;
    if (first_tile) {
      const TokenRows<In> keys = tile->rows(key_base<In>(p, p.k, seq, rows->group.head_kv), p.k, p.dim),
                          values = tile->rows(key_base<In>(p, p.v, seq, rows->group.head_kv), p.v, p.dim_v);
      const int32_t at_once = panels() > 1 ? min_i32(tile->n, 3 * kDotRows) : tile->n;
      for (int32_t i = 0; i < at_once; ++i) keys.template fetch<2>(i);
      for (int32_t i = 0; i < at_once; ++i) values.template fetch<2>(i);
      if (panels() > 1) return ahead->start(keys, values, at_once, (tile->n - at_once + kDotRows - 1) / kDotRows);
    }
    fetch_next(seq, 0);
  }

  // Fetches the next tile over the products of panels from `panel` on.
  void fetch_next(const Sequence& seq, int64_t panel) {
    if (!next_tile) return;
    ahead->start(next_tile->rows(key_base<In>(p, p.k, seq, rows->group.head_kv), p.k, p.dim),
                 next_tile->rows(key_base<In>(p, p.v, seq, rows->group.head_kv), p.v, p.dim_v), 0,
                 (panels() - panel) * ((tile->n + kDotRows - 1) / kDotRows));
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

  void attend(const Sequence& seq, int32_t k_lo, int32_t k_hi) {
    load_queries(seq);
    for_each_key_tile_ahead(p, rows->group, k_lo, k_hi, tile_keys(p.dim, p.dim_v), tiles,
                            [&](KeyTile& now, KeyTile* next) {
                              tile = &now;
                              next_tile = next ? next : thin_beyond(seq, k_hi);
                              key_tile(seq);
                            });
    if (thin) thin_order<In>(o, columns, rows->rows, p.dim_v);
  }

  // Writes out and lse of the item's rows from accumulators o, m, l.
  void finish(const Sequence& seq) {
    for (int32_t r = 0; r < rows->rows; ++r) {
      const int32_t head = rows->head_of(r);
      const int64_t token = seq.q_token + rows->query_of(r);
      A factor, lse;
      finish_row(m[r], l[r], p.sink_logits ? static_cast<A>(p.sink_logits[head] * kLog2e) : -kInfinity<A>, factor, lse);
      if (p.head_gate.data) factor *= gate(seq, r);
      static_cast<A*>(p.lse)[(seq.batch * p.heads + head) * p.tq + token] = lse;
      In* out = static_cast<In*>(p.out.data) + seq.batch * p.out.batch + head * p.out.head + token * p.out.token;
      store_row(o + r * columns, factor, out, p.dim_v);
    }
  }

  void finish_gated_off(const Sequence& seq) {
    for (int32_t r = 0; r < rows->rows; ++r) {
      m[r] = -kInfinity<A>;
      l[r] = 0;
    }
    std::memset(o, 0, rows->rows * columns * sizeof(A));
    finish(seq);
  }
};

template <class In> struct ForwardCall {
  using Item = ForwardItem<In>;
  using A = typename Item::A;
  const AttendParams& p;
  const RowItems items;
  int64_t scratch_bytes, partial_size;
  A* partial = nullptr;  // [items][kMaxRows][columns + 2]: o, m, l of every split

  explicit ForwardCall(const AttendParams& params) : p(params), items(params, true) {
    Carve c{nullptr};
    Item probe(p, c);
    scratch_bytes = c.used;
    partial_size = items.splits > 1 ? items.rows_at_most() * (probe.columns + 2) : 0;
    if (items.splits > 1) partial = new A[items.count() * partial_size];
  }
  ~ForwardCall() { delete[] partial; }

  void run_item(int64_t index) const {
    Carve c{static_cast<char*>(thread_scratch(scratch_bytes))};
    Item item(p, c);
    Sequence seq;
    int64_t split;
    if (!items.open(index, *item.rows, seq, split)) return;
    if (item.gated_off(seq)) {
      if (split == 0) item.finish_gated_off(seq);
      return;
    }
    const int64_t k_lo = split * kSplitKeys, k_hi = k_lo + kSplitKeys;
    const bool last = split + 1 == items.splits || k_hi > seq.keys;
    item.attend(seq, clamp_position(k_lo), last ? seq.keys : clamp_position(k_hi));
    if (items.splits == 1) return item.finish(seq);
    A* to = partial + index * partial_size;
    const int64_t n = item.rows->rows;
    std::memcpy(to, item.o, n * item.columns * sizeof(A));
    std::memcpy(to + n * item.columns, item.m, n * sizeof(A));
    std::memcpy(to + n * (item.columns + 1), item.l, n * sizeof(A));
  }

  // Adds the splits of one row block in order and finishes it. `index` counts row blocks.
  void merge_item(int64_t index) const {
    Carve c{static_cast<char*>(thread_scratch(scratch_bytes))};
    Item item(p, c);
    Sequence seq;
    int64_t split;
    if (!items.open(index * items.splits, *item.rows, seq, split) || item.gated_off(seq)) return;
    const int64_t n = item.rows->rows, columns = item.columns;
    for (int64_t r = 0; r < n; ++r) {
      A top = -kInfinity<A>;
      for (int64_t i = 0; i < items.splits; ++i) {
        const A m = partial[(index * items.splits + i) * partial_size + n * columns + r];
        if (m > top) top = m;
      }
      A* row = item.o + r * columns;
      std::memset(row, 0, columns * sizeof(A));
      A sum = 0;
      for (int64_t i = 0; i < items.splits; ++i) {
        const A* from = partial + (index * items.splits + i) * partial_size;
        const A m = from[n * columns + r], l = from[n * (columns + 1) + r];
        if (l == 0) continue;
        const A weight = std::exp2(m - top);
        sum += weight * l;
        for (int64_t x = 0; x < columns; ++x) row[x] += weight * from[r * columns + x];
      }
      item.m[r] = top;
      item.l[r] = sum;
    }
    item.finish(seq);
  }

  // Waking the other threads costs about as much as a quarter of a million multiply-adds: less isn't shared out.
  bool worth_sharing() const {
    const double products = static_cast<double>(p.batch) * p.heads * p.tq * p.tk * (p.dim + p.dim_v);
    return products > 262144;
  }

  void run() const {
    if (items.splits == 1 && !worth_sharing()) {
      for (int64_t i = 0; i < items.count(); ++i) run_item(i);
      return;
    }
    auto run = [this](int64_t i, int) { run_item(i); };
    if (items.splits == 1) return parallel_items(items.count(), run);
    parallel_runs(items.count(), run);  // splits of a sequence one after the other
    parallel_items(items.count() / items.splits, [this](int64_t i, int) { merge_item(i); });
  }
};

inline void attend_forward(const AttendParams& p) {
  switch (p.dtype) {
    case DType::f32: return ForwardCall<float>(p).run();
    case DType::f64: return ForwardCall<double>(p).run();
    case DType::bf16: return ForwardCall<bf16>(p).run();
    case DType::f16: return ForwardCall<f16>(p).run();
  }
}

ATTN_NAMESPACE_END
