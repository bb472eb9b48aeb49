// What a tile of keys asks of a panel of query rows beyond the plain product: its modifiers, which of its keys any row
// sees, and between which of them some row doesn't see some key, so that a mask is needed.
#pragma once

#include "attn/softmax.h"
#include "cpu/key_tile.h"
#include "cpu/row_block.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN

template <class A> constexpr A kInfinity = static_cast<A>(__builtin_inff());

// Modifiers of a tile's scores.
template <class A> struct Modifiers {
  A softcap;               // in base-2 logit units; 0 = off
  const A* key_weight;     // null, or per key of the tile, in base-2 logit units
  const int32_t* segment;  // null, or per key of the tile
  const LayoutView* layout;
  bool removes;  // some key of the tile has weight -inf: nobody sees it, so it has to be masked (its K or V may be NaN)

  bool removed(int j) const { return removes && key_weight[j] == -kInfinity<A>; }
};

// Per-key modifiers of a tile, gathered into the given scratch.
template <class A>
inline Modifiers<A> load_modifiers(const AttendParams& p, const Sequence& seq, int64_t head_kv, const KeyTile& t,
                                   A* key_weight, int32_t* segment) {
  Modifiers<A> mod{static_cast<A>(p.softcap * kLog2e), nullptr, nullptr, &p.layout, false};
  if (p.key_log_weight.data) {
    const View3& view = p.key_log_weight;
    const float* w = static_cast<const float*>(view.data) + seq.batch * view.batch + head_kv * view.head;
    for (int j = 0; j < t.n; ++j) {
      key_weight[j] = static_cast<A>(w[(seq.k_token + t.position[j]) * view.token]) * static_cast<A>(kLog2e);
      mod.removes |= key_weight[j] == -kInfinity<A>;
    }
    mod.key_weight = key_weight;
  }
  if (p.segment_k.data) {
    const int32_t* ids = p.segment_k.data + seq.batch * p.segment_k.batch;
    for (int j = 0; j < t.n; ++j) segment[j] = ids[(seq.k_token + t.position[j]) * p.segment_k.token];
    mod.segment = segment;
  }
  return mod;
}

// Does every row with reach r see key j, as far as position tells?
ATTN_INLINE bool all_rows_see(const KeyTile& t, int j, const PanelReach& r) {
  return (t.position[j] >= r.max_lo && t.position[j] <= r.min_hi) || (t.exempt[j] && t.position[j] <= r.min_cap);
}

// Is a mask needed for keys [a, b) of the tile in a panel with reach r?
template <class A>
inline bool needs_mask(const KeyTile& t, int a, int b, const PanelReach& r, const Modifiers<A>& mod) {
  if (mod.removes) return true;
  for (int i = a; t.any_slot && i < b; ++i) {
    if (t.slot[i] >= 0) return true;
  }
  if (mod.segment) {
    if (!r.one_segment) return true;
    for (int i = a; i < b; ++i) {
      if (mod.segment[i] != r.segment) return true;
    }
  }
  if (!t.any_exempt) return t.position[a] < r.max_lo || t.position[b - 1] > r.min_hi;
  for (int i = a; i < b; ++i) {
    if (!all_rows_see(t, i, r)) return true;
  }
  return false;
}

// Keys [a, b) of the tile that any row of the panel can see (positions ascend).
inline void clip_to_reach(const KeyTile& t, const PanelReach& r, int& a, int& b) {
  a = 0;
  b = t.n;
  const int32_t top = t.any_exempt ? max_i32(r.max_hi, r.max_cap) : r.max_hi;
  while (b > 0 && t.position[b - 1] > top) --b;
  if (!t.any_exempt) {
    while (a < b && t.position[a] < r.min_lo) ++a;
  }
}

// What the rows [first, last) of a panel have in common in the bit tiles of a layout, a word (32 keys) at a time.
struct BitReach {
  const LayoutView& layout;
  const RowBlock& rows;
  const int32_t first, last;
  int32_t slot = -1, word = -1;
  uint32_t any = 0, all = 0;

  BitReach(const LayoutView& l, const RowBlock& b, int32_t first_row, int32_t last_row)
      : layout(l), rows(b), first(first_row), last(last_row) {}

  void load(int32_t in_slot, int32_t in_word) {
    if (in_slot == slot && in_word == word) return;
    slot = in_slot;
    word = in_word;
    const int64_t words_per_row = (layout.block_k + 31) / 32;
    const int32_t* bits = layout.bits + slot * layout.block_q * words_per_row + word;
    any = 0;
    all = ~0u;
    for (int32_t r = first; r < last; ++r) {
      const uint32_t w = static_cast<uint32_t>(bits[rows.block_row[r] * words_per_row]);
      any |= w;
      all &= w;
    }
  }

  bool nobody_sees(const KeyTile& t, int j) {
    if (t.slot[j] < 0) return false;
    load(t.slot[j], t.column[j] / 32);
    return !(any >> (t.column[j] % 32) & 1);
  }
  bool all_see(const KeyTile& t, int j) {
    if (t.slot[j] < 0) return true;
    load(t.slot[j], t.column[j] / 32);
    return all >> (t.column[j] % 32) & 1;
  }
};

// The keys [a, b) of a tile that a panel looks at. Outside [cut_a, cut_b) every row sees every one of them.
struct PanelKeys {
  int a, b, cut_a, cut_b;
  bool masked() const { return cut_a < cut_b; }
};

template <class A>
inline PanelKeys panel_keys(const KeyTile& t, const RowBlock& rows, int32_t first, int32_t last, const PanelReach& r,
                            const Modifiers<A>& mod, bool from_even) {
  PanelKeys k;
  clip_to_reach(t, r, k.a, k.b);
  BitReach bits(*mod.layout, rows, first, last);
  if (t.any_slot) {
    while (k.a < k.b && bits.nobody_sees(t, k.a)) ++k.a;
    while (k.b > k.a && bits.nobody_sees(t, k.b - 1)) --k.b;
  }
  k.cut_a = k.cut_b = k.a;
  if (k.a >= k.b) return k;
  if (from_even) k.a &= ~1;
  auto all_see = [&](int j) {
    return all_rows_see(t, j, r) && bits.all_see(t, j) && !mod.removed(j) &&
           (!mod.segment || (r.one_segment && mod.segment[j] == r.segment));
  };
  k.cut_a = k.a;
  k.cut_b = k.b;
  if (!t.any_slot && !t.any_exempt && !mod.removes && !mod.segment && t.position[k.a] >= r.max_lo &&
      t.position[k.b - 1] <= r.min_hi) {
    k.cut_b = k.a;  // the common case, without a look at every key
    return k;
  }
  // Keys a step at a time where that is plain to see: whole blocks of a layout within everybody's reach.
  constexpr int kStep = 16;
  auto step_seen = [&](int j) {
    if (t.any_exempt || mod.removes || mod.segment || t.position[j] < r.max_lo || t.position[j + kStep - 1] > r.min_hi)
      return false;
    int32_t whole = -1;
    for (int i = 0; i < kStep; ++i) whole &= t.slot[j + i];
    return whole < 0;
  };
  while (k.cut_b - k.cut_a >= kStep && step_seen(k.cut_a)) k.cut_a += kStep;
  while (k.cut_a < k.b && all_see(k.cut_a)) ++k.cut_a;
  while (k.cut_b - k.cut_a >= kStep && step_seen(k.cut_b - kStep)) k.cut_b -= kStep;
  while (k.cut_b > k.cut_a && all_see(k.cut_b - 1)) --k.cut_b;
  return k;
}

// Can rows [first, last) and keys [a, b) share a segment? Ranges of ids decide: exact for sorted ids.
inline bool segments_meet(const RowBlock& rows, int32_t first, int32_t last, const int32_t* segment, int a, int b) {
  int32_t low = segment[a], high = segment[a];
  for (int j = a + 1; j < b; ++j) {
    low = min_i32(low, segment[j]);
    high = max_i32(high, segment[j]);
  }
  for (int32_t r = first; r < last; ++r) {
    if (rows.segment[r] >= low && rows.segment[r] <= high) return true;
  }
  return false;
}

ATTN_NAMESPACE_END
