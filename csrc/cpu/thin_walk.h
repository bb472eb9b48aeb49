// A handful of query rows against a sequence's keys (decoding), panel by panel of a tile (thin_rows.h). Rows of several
// kv heads may go through the keys together, a tile of each in turn: pages hold the keys of all heads side by side, and
// are then read as one stream.
#pragma once

#include "cpu/mask_panel.h"
#include "cpu/thin_values.h"

ATTN_NAMESPACE_BEGIN

// Up to so many rows of a kv head go through its keys this way, kThinRows at a time. Beyond, lanes full of rows are as
// fast, and they are sooner where keys are few or near, as they may be in any call but a decoding one. From memory 9 to
// 12 rows of 64 features take 0.6 to 0.8 of the time and 16 take 0.6 to 1, because memory is waited for less; features
// that aren't whole vectors double what they cost.
template <class In> inline int thin_rows_at_most(const AttendParams& p) {
  if (!p.key_lengths || p.dim < 64 || p.dim_v < 64) return 2 * kThinRows;
  if (ATTN_VBYTES < 64) return 3 * kThinRows;
  return thin_whole<In>(p.dim) && thin_whole<In>(p.dim_v) ? kThinRowsAtMost : 2 * kThinRows;
}

template <class In> struct ThinWalk {
  using Op = ThinOperand<In>;
  using A = typename Op::A;
  static constexpr int kGroups = kThinRowsAtMost / kThinRows;

  // Rows of a kv head: queries [kThinRowsAtMost][thin_width] and what they have come to.
  struct Head {
    int64_t index;
    const In *k, *v;
    typename Op::Element* q;
    A *o, *m, *l;
  };

  const AttendParams& p;
  const int64_t columns;
  Head* head;
  int heads = 0;
  const RowBlock* rows = nullptr;
  PanelReach reach[kGroups];
  A *s, *spread, *alpha, *key_weight;  // spread: the scores, one key a vector
  int32_t* segment;
  const In **k_list, **v_list, **next_list;

  // `columns` apart lie the rows of o.
  ThinWalk(const AttendParams& params, int64_t o_columns, int64_t heads_at_most, Carve& c)
      : p(params), columns(o_columns) {
    const int keys = tile_keys(p.dim, p.dim_v);
    head = c.take<Head>(heads_at_most);
    const int64_t width = kThinRowsAtMost * thin_width<In>(p.dim);
    auto* q = c.take<typename Op::Element>(heads_at_most * width);
    for (int64_t h = 0; c.base && h < heads_at_most; ++h) head[h].q = q + h * width;
    s = c.take<A>(kGroups * kThinPanelAtMost * kThinRows);
    spread = c.take<A>(kThinPanelAtMost * Lanes<A>::n);
    alpha = c.take<A>(kThinRowsAtMost);
    key_weight = c.take<A>(keys);
    segment = c.take<int32_t>(keys);
    k_list = c.take<const In*>(kThinPanelAtMost);
    v_list = c.take<const In*>(kThinPanelAtMost);
    next_list = c.take<const In*>(kThinPanelAtMost);
  }

  // One more kv head. `block` are its rows, or as many of another head, which see the same keys; o, m and l are theirs.
  void add_head(const Sequence& seq, const RowBlock& block, const In* const* q_rows, A* o, A* m, A* l) {
    Head& h = head[heads++];
    h.index = block.group.head_kv;
    h.k = key_base<In>(p, p.k, seq, h.index);
    h.v = key_base<In>(p, p.v, seq, h.index);
    h.o = o;
    h.m = m;
    h.l = l;
    const int64_t width = thin_width<In>(p.dim);
    for (int32_t r = 0; r < kThinRowsAtMost; ++r) {
      if (r < block.rows) thin_query(q_rows[r], p.dim, h.q + r * width);
      else std::memset(static_cast<void*>(h.q + r * width), 0, width * sizeof *h.q);
      m[r] = -kInfinity<A>;
      l[r] = 0;
    }
    std::memset(o, 0, kThinRowsAtMost * columns * sizeof(A));
    rows = &block;
    for (int g = 0; g < groups(); ++g)
      reach[g] = panel_reach(block, g * kThinRows, min_i32((g + 1) * kThinRows, block.rows));
  }

  int groups() const { return (rows->rows + kThinRows - 1) / kThinRows; }

  // The tile, whose keys every head looks at. `next` is the one that follows, or null.
  void tile(const Sequence& seq, KeyTile& now, const KeyTile* next, bool first) {
    const int step = thin_panel_keys<In>(p.dim, p.dim_v);
    auto panel_of = [&](const KeyTile& t, int h, int begin) {
      return ThinKeys<In>{&t, begin, min_i32(begin + step, t.n), head[h].k, head[h].v};
    };
    ThinKeys<In> keys = panel_of(now, 0, 0);
    // Who fetches the first panel of all?
    for (int i = 0; first && i < keys.end; ++i) prefetch_row(keys.row(keys.k, p.k, i), p.dim);
    const bool plain = is_plain(now);
    if (!plain) now.list_keys();
    for (int h = 0; h < heads; ++h) {
      const Modifiers<A> mod = load_modifiers(p, seq, head[h].index, now, key_weight, segment);
      PanelKeys seen[kGroups];
      for (int g = 0; g < groups(); ++g) {
        const int32_t row = g * kThinRows, end = min_i32(row + kThinRows, rows->rows);
        PanelKeys& k = seen[g];
        k = plain ? PanelKeys{0, now.n, 0, 0} : panel_keys(now, *rows, row, end, reach[g], mod, false);
        if (k.a < k.b && mod.segment && !segments_meet(*rows, row, end, segment, k.a, k.b)) k.b = k.a;
      }
      for (int begin = 0; begin < now.n; begin += step) {
        ThinKeys<In> following = keys;  // stands in past the last one: there is nothing to fetch
        if (begin + step < now.n) following = panel_of(now, h, begin + step);
        else if (h + 1 < heads) following = panel_of(now, h + 1, 0);
        else if (next) following = panel_of(*next, 0, 0);
        const bool told = Op::pairs && heads > 1 && next && begin + step >= now.n;
        set_lines(keys, told ? panel_of(*next, 0, 0) : keys, told ? heads - h : heads + 1);
        panel(head[h], keys, following, seen, mod);
        keys = following;
      }
    }
  }

  // Rows of o with their features in order.
  void finish() {
    for (int h = 0; h < heads; ++h) thin_order<In>(head[h].o, columns, rows->rows, p.dim_v);
  }

 private:
  ThinLines k_lines, v_lines;

  // Where several heads take a page in turn, they tell the hardware early where the next one begins: each of the last
  // ones fetches some lines of its first `block`, the last of all those that come last. `left` counts this head and
  // those after it.
  void set_lines(const ThinKeys<In>& keys, const ThinKeys<In>& block, int left) {
    constexpr int64_t kLines = 16, kHeads = 6;  // 6 KB of K and of V
    const int64_t stride = p.k.token < p.v.token ? p.k.token : p.v.token, at = (kHeads - left) * kLines * kThinLine;
    const bool any = left <= kHeads && at + kLines * kThinLine <= block.end * stride * static_cast<int64_t>(sizeof(In));
    const ThinKeys<In>& from = any ? block : keys;  // else a line that is there
    k_lines = {reinterpret_cast<const char*>(from.first(from.k, p.k)) + (any ? at : 0), any ? kLines - 1 : 0};
    v_lines = {reinterpret_cast<const char*>(from.first(from.v, p.v)) + (any ? at : 0), any ? kLines - 1 : 0};
  }

  // Does every row see every key, with nothing to add to a score?
  bool is_plain(const KeyTile& t) const {
    if (t.listed || p.key_log_weight.data || p.segment_k.data) return false;
    bool all = true;
    for (int g = 0; g < groups(); ++g) all &= t.first >= reach[g].max_lo && t.first + t.n - 1 <= reach[g].min_hi;
    return all;
  }

  void panel(const Head& h, const ThinKeys<In>& keys, const ThinKeys<In>& following, const PanelKeys* seen,
             const Modifiers<A>& mod) {
    const int64_t stride = p.k.token == p.v.token && keys.even() && following.even() ? p.k.token : 0;
    if (stride == 64) return even_panel<64>(h, keys, following, seen, mod);
    if (stride == 128) return even_panel<128>(h, keys, following, seen, mod);
    const int n = keys.end - keys.begin;
    all_rows(h, keys, keys.list(keys.k, p.k, n, k_list), keys.list(keys.v, p.v, n, v_list),
             following.list(following.k, p.k, n, next_list), seen, mod);
  }
  template <int64_t kStride>
  void even_panel(const Head& h, const ThinKeys<In>& keys, const ThinKeys<In>& following, const PanelKeys* seen,
                  const Modifiers<A>& mod) {
    using Rows = EvenRows<In, kStride>;
    all_rows(h, keys, Rows{keys.first(keys.k, p.k)}, Rows{keys.first(keys.v, p.v)},
             Rows{following.first(following.k, p.k)}, seen, mod);
  }

  // Of a panel, the keys that a group of rows looks at: n from tile position `first` on, `at` within the panel.
  struct Part {
    int first, at, n;
    bool masked;
  };
  static ATTN_INLINE Part part_of(const ThinKeys<In>& keys, const PanelKeys& seen) {
    const int a = max_i32(keys.begin, seen.a), b = min_i32(keys.end, seen.b);
    return {a, a - keys.begin, b - a, max_i32(a, seen.cut_a) < min_i32(b, seen.cut_b)};
  }

  // All rows of a head against a panel, while it lies in L1: the keys, then the values.
  template <class Rows>
  void all_rows(const Head& h, const ThinKeys<In>& keys, Rows k, Rows v, Rows next_k, const PanelKeys* seen,
                const Modifiers<A>& mod) {
    const int count = groups();
    if (count == 1) {
      const Part part = part_of(keys, seen[0]);
      if (part.n <= 0) return;
      scores(h, 0, keys, k, v.from(part.at), part, mod);
      values(h, 0, v, next_k.from(part.at), part);
      return;
    }
    for (int g = 0; g < count; ++g) {
      const Part part = part_of(keys, seen[g]);
      if (part.n > 0) scores(h, g, keys, k, v.from(part.at).fetched(part.n, g, count), part, mod);
    }
    for (int g = 0; g < count; ++g) {
      const Part part = part_of(keys, seen[g]);
      if (part.n > 0) values(h, g, v, next_k.from(part.at).fetched(part.n, g, count), part);
    }
  }

  // Weights of group g of rows, and what they make of the values. `later` is fetched on the way.
  template <class Rows, class Later>
  void scores(const Head& h, int g, const ThinKeys<In>& keys, Rows k, Later later, const Part& part,
              const Modifiers<A>& mod) {
    const int32_t row = g * kThinRows;
    A* const to = s + row * kThinPanelAtMost;
    thin_dot<In, A>(k.from(part.at), later, part.n, p.dim, h.q + row * thin_width<In>(p.dim),
                    static_cast<A>(p.scale * kLog2e), to, k_lines);
    if (part.masked || mod.softcap > 0 || mod.key_weight) {
      vec<A> top[1];
      thin_spread(to, part.n, spread);
      modify_panel<A, 1>(spread, part.first, part.first + part.n, *rows, row, *keys.tile, mod, part.masked, reach[g],
                         top);
      thin_gather(spread, part.n, to);
    }
    thin_softmax(to, part.n, h.m + row, h.l + row, alpha + row);
  }
  template <class Rows, class Later> void values(const Head& h, int g, Rows v, Later later, const Part& part) {
    const int32_t row = g * kThinRows;
    thin_acc<In, A>(v.from(part.at), later, part.n, p.dim_v, part.masked, s + row * kThinPanelAtMost, alpha + row,
                    h.o + row * columns, columns, v_lines);
  }
};

ATTN_NAMESPACE_END
