// Applies softcap, key weights and every mask to one strip of scores. Lanes are query rows; keys run along the strip.
#pragma once

#include "cpu/exp.h"
#include "cpu/panel_keys.h"

ATTN_NAMESPACE_BEGIN

ATTN_INLINE i32v load_ints(const int32_t* p, float) { return load(p); }
ATTN_INLINE i64v load_ints(const int32_t* p, double) {
  i64v v;
  for (int i = 0; i < Lanes<double>::n; ++i) v[i] = p[i];
  return v;
}
template <class A> using Ints = std::remove_const_t<decltype(load_ints(nullptr, A{}))>;
template <class A> ATTN_INLINE Ints<A> splat_int(int32_t x) { return x - Ints<A>{}; }

// Lane mask of key j of the tile for the panel that starts at row `first`.
template <class A, int NV> struct PanelMask {
  static constexpr int L = Lanes<A>::n;
  Ints<A> lo[NV], hi[NV], cap[NV], segment[NV];
  const RowBlock& rows;
  int32_t first;
  const KeyTile& tile;
  const Modifiers<A>& mod;
  int32_t word_slot = -1, word_index = -1;  // which word of the bit tile `words` holds
  Ints<A> words[NV] = {};

  PanelMask(const RowBlock& b, int32_t first_row, const KeyTile& t, const Modifiers<A>& m)
      : rows(b), first(first_row), tile(t), mod(m) {
    for (int v = 0; v < NV; ++v) {
      lo[v] = load_ints(b.lo + first + v * L, A{});
      hi[v] = load_ints(b.hi + first + v * L, A{});
      cap[v] = load_ints(b.cap + first + v * L, A{});
      segment[v] = load_ints(b.segment + first + v * L, A{});
    }
  }

  void load_words(int32_t slot, int32_t index) {
    word_slot = slot;
    word_index = index;
    const int64_t words_per_row = (mod.layout->block_k + 31) / 32;
    const int32_t* bits = mod.layout->bits + slot * mod.layout->block_q * words_per_row + index;
    int32_t lane[NV * L];
    for (int i = 0; i < NV * L; ++i) lane[i] = bits[rows.block_row[first + i] * words_per_row];
    for (int v = 0; v < NV; ++v) words[v] = load_ints(lane + v * L, A{});
  }

  ATTN_INLINE void of_key(int j, Ints<A>* keep) {
    const Ints<A> position = splat_int<A>(tile.position[j]), exempt = splat_int<A>(tile.exempt[j]);
    for (int v = 0; v < NV; ++v) keep[v] = visible(position, lo[v], hi[v], cap[v], exempt);
    if (mod.segment) {
      const Ints<A> id = splat_int<A>(mod.segment[j]);
      for (int v = 0; v < NV; ++v) keep[v] &= segment[v] == id;
    }
    if (tile.slot[j] >= 0) {
      if (tile.slot[j] != word_slot || tile.column[j] / 32 != word_index) load_words(tile.slot[j], tile.column[j] / 32);
      const Ints<A> bit = splat_int<A>(static_cast<int32_t>(1u << (tile.column[j] % 32)));
      for (int v = 0; v < NV; ++v) keep[v] &= (words[v] & bit) != 0;
    }
    if (mod.removed(j)) {
      for (int v = 0; v < NV; ++v) keep[v] = Ints<A>{};
    }
  }
};

// The same rule with keys [first, first + count) of a tile in lanes and one row at a time (backward, dK and dV). Lanes
// past `count` are padding and never kept, nor are keys of weight -inf.
template <class A, int NV> struct LaneMask {
  static constexpr int L = Lanes<A>::n;
  Ints<A> position[NV], exempt[NV], segment[NV] = {}, valid[NV], bit[NV] = {};
  const RowBlock& rows;
  const KeyTile& tile;
  const int32_t first, count;
  const Modifiers<A>& mod;
  bool one_word = false;  // the lanes' bits lie in one word of a bit tile

  LaneMask(const RowBlock& b, const KeyTile& t, int32_t first_key, int32_t keys, const Modifiers<A>& m)
      : rows(b), tile(t), first(first_key), count(keys), mod(m) {
    for (int v = 0; v < NV; ++v) {
      for (int i = 0; i < L; ++i) {
        const int32_t lane = v * L + i, key = first + (lane < count ? lane : 0);
        position[v][i] = t.position[key];
        exempt[v][i] = t.exempt[key];
        if (m.segment) segment[v][i] = m.segment[key];
        valid[v][i] = -(lane < count && !m.removed(key));
        if (t.any_slot) bit[v][i] = static_cast<int32_t>(1u << (t.column[key] & 31));
      }
    }
    if (!t.any_slot) return;
    one_word = t.slot[first] >= 0;
    for (int32_t key = first + 1; key < first + count; ++key)
      one_word &= t.slot[key] == t.slot[first] && t.column[key] / 32 == t.column[first] / 32;
  }

  ATTN_INLINE void of_row(int r, Ints<A>* keep) const {
    const Ints<A> lo = splat_int<A>(rows.lo[r]), hi = splat_int<A>(rows.hi[r]), cap = splat_int<A>(rows.cap[r]);
    for (int v = 0; v < NV; ++v) keep[v] = visible(position[v], lo, hi, cap, exempt[v]) & valid[v];
    if (mod.segment) {
      const Ints<A> id = splat_int<A>(rows.segment[r]);
      for (int v = 0; v < NV; ++v) keep[v] &= segment[v] == id;
    }
    if (one_word) {
      const LayoutView& l = *mod.layout;
      const int64_t row = static_cast<int64_t>(tile.slot[first]) * l.block_q + rows.block_row[r];
      const Ints<A> word = splat_int<A>(l.bits[row * ((l.block_k + 31) / 32) + tile.column[first] / 32]);
      for (int v = 0; v < NV; ++v) keep[v] &= (word & bit[v]) != 0;
    } else if (tile.any_slot) {
      for (int v = 0; v < NV; ++v) keep[v] &= bits_of_row(r, v);
    }
  }

  Ints<A> bits_of_row(int r, int v) const {
    const LayoutView& l = *mod.layout;
    const int64_t words = (l.block_k + 31) / 32;
    Ints<A> mask;
    for (int i = 0; i < L; ++i) {
      const int32_t lane = v * L + i, key = first + (lane < count ? lane : 0), slot = tile.slot[key],
                    column = tile.column[key];
      mask[i] = slot < 0
                    ? -1
                    : -((l.bits[(slot * l.block_q + rows.block_row[r]) * words + column / 32] >> (column % 32)) & 1);
    }
    return mask;
  }
};

template <class A> ATTN_INLINE vec<A> soft_cap(vec<A> x, A cap) { return cap * tanhv<vec<A>>(x / cap); }

// Rewrites scores s [b - a][NV * L] of keys [a, b) and recomputes their maximum.
template <class A, int NV>
inline void modify_panel(A* s, int a, int b, const RowBlock& rows, int32_t first, const KeyTile& t,
                         const Modifiers<A>& mod, bool masked, const PanelReach& reach, vec<A>* top) {
  constexpr int L = Lanes<A>::n;
  PanelMask<A, NV> mask(rows, first, t, mod);
  for (int v = 0; v < NV; ++v) top[v] = splat(-kInfinity<A>);
  for (int j = a; j < b; ++j, s += NV * L) {
    Ints<A> keep[NV] = {};
    const bool cut = masked && (mod.segment || t.slot[j] >= 0 || mod.removed(j) || !all_rows_see(t, j, reach));
    if (cut) mask.of_key(j, keep);
    for (int v = 0; v < NV; ++v) {
      vec<A> x = load(s + v * L);
      if (mod.softcap > 0) x = soft_cap<A>(x, mod.softcap);
      if (mod.key_weight) x += mod.key_weight[j];
      if (cut) x = keep[v] ? x : splat(-kInfinity<A>);
      top[v] = vmax(x, top[v]);
      store(s + v * L, x);
    }
  }
}

ATTN_NAMESPACE_END
