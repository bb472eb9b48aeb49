// From products to gradients in the backward pass: scores and dP of a panel of keys become the softmax's weights and
// dS, each in the form that the next product takes. Keys lie in lanes; query rows run along the strip.
#pragma once

#include "cpu/backward_rows.h"
#include "cpu/mask_panel.h"

ATTN_NAMESPACE_BEGIN

template <class T> struct ScoreGradients {
  using A = Acc<T>;
  static constexpr int W = kPanel<T>, L = kLanes<T>;
  static constexpr int kChunk = 64;  // rows whose scores and dP stay in L1 until they have become weights and dS

  const RowBlock* const rows;
  const KeyTile* const tile;
  const A scale;          // of the logits, in base 2
  const bool unmodified;  // `plain` may serve (segments only cut)
  const bool want_gate, want_key_weight;
  A *s, *dp;               // [kChunk][NV * L]: products of a chunk of rows
  A *lse2, *delta, *gate;  // of rows (BackwardRows::load_block)
  T *weights, *ds;         // of a panel, as operands; ds only where they are pairs
  DsElement<T>* ds_rows;   // dS of the whole tile, [rows][ds_width]: what dQ is made from
  const int64_t ds_width;
  A* gate_sum;  // of rows: sum over keys of weight dP
  A* key_sum;   // of keys, the first at position key_begin: sum over rows of dlogit
  int32_t key_begin = 0;

  // keys: of a tile at most; range: of all that key_sum holds.
  ScoreGradients(const AttendBackwardParams& b, const RowBlock* row_block, const KeyTile* key_tile, int keys,
                 int64_t range, Carve& c)
      : rows(row_block), tile(key_tile), scale(static_cast<A>(b.forward.scale * kLog2e)),
        unmodified(!b.forward.head_gate.data && b.forward.softcap == 0 && !b.forward.key_log_weight.data &&
                   !b.dhead_gate && !b.dkey_log_weight),
        want_gate(b.dhead_gate), want_key_weight(b.dkey_log_weight), ds_width((keys + W - 1) / W * W) {
    s = c.take<A>(kChunk * W);
    dp = c.take<A>(kChunk * W);
    weights = c.take<T>(kMaxRows * W);
    ds_rows = c.take<DsElement<T>>(kMaxRows * ds_width);
    ds = kPairRows<T> ? c.take<T>(kMaxRows * W) : nullptr;
    gate_sum = c.take<A>(kMaxRows);
    lse2 = c.take<A>(kMaxRows + 2 * W);
    delta = c.take<A>(kMaxRows + 2 * W);
    gate = c.take<A>(kMaxRows + 2 * W);
    key_sum = c.take<A>(range + W);
  }

  // Products of rows [a, b) with keys [first, first + count) of the tile -> weights and dS. `from` is the row that the
  // panel's operands start at; `masked`: some row may not see some key, or count is less than the panel holds.
  template <int NV>
  void panel(int32_t first, int32_t count, int from, int a, int b, bool masked, const Modifiers<A>& mod) {
    if (unmodified && !masked) plain<NV>(first, from, a, b);
    else modified<NV>(first, count, from, a, b, masked, mod);
  }

  // Rows [from, to) of a panel's dS are zero.
  void clear(int32_t first, int64_t width, int from, int to) {
    for (int r = from; r < to; ++r)
      std::memset(static_cast<void*>(ds_rows + r * ds_width + first), 0, width * sizeof(*ds_rows));
  }

 private:
  // The common case: no modifier, and every row sees every key.
  template <int NV> void plain(int32_t first, int from, int a, int b) {
    auto gradient = [&](int r, vec<A>* weight, vec<A>* out) {
      for (int i = 0; i < NV; ++i) {
        const int64_t at = ((r - a) * NV + i) * L;
        weight[i] = exp2v(load(s + at) * scale - lse2[r]);
        out[i] = weight[i] * (load(dp + at) - delta[r]);
        store_as(ds_rows + r * ds_width + first + i * L, out[i]);
      }
    };
    for (int r = a; r < b; r += kPair<T>) store_weights<NV>(from, r, r + 1 < b, gradient);
  }

  // Weights and dS of row r, in pairs of rows r and r + 1, where `gradient(row, weight, dS)` computes a row's.
  template <int NV, class F> ATTN_INLINE void store_weights(int from, int r, bool both, F& gradient) {
    vec<A> w[NV], d[NV];
    gradient(r, w, d);
    if constexpr (kPairRows<T>) {
      vec<A> w_next[NV] = {}, d_next[NV] = {};
      if (both) gradient(r + 1, w_next, d_next);
      for (int i = 0; i < NV; ++i) {
        const int64_t at = ((r - from) / 2 * NV + i) * L;
        store(weights + at, make_pairs(w[i], w_next[i]));
        store(ds + at, make_pairs(d[i], d_next[i]));
      }
    } else {
      for (int i = 0; i < NV; ++i) store(weights + ((r - from) * NV + i) * L, w[i]);
    }
  }

  // Weights are those of the values, that is times the gate.
  template <int NV>
  void modified(int32_t first, int32_t count, int from, int a, int b, bool masked, const Modifiers<A>& mod) {
    LaneMask<A, NV> mask(*rows, *tile, first, count, mod);
    vec<A> weight_sum[NV] = {}, key_term[NV] = {};
    if (mod.key_weight) {
      for (int i = 0; i < NV; ++i) key_term[i] = load(mod.key_weight + first + i * L);
    }
    auto gradient = [&](int r, vec<A>* w_out, vec<A>* out) {
      Ints<A> keep[NV] = {};
      if (masked) mask.of_row(r, keep);
      vec<A> row_sum{};
      for (int i = 0; i < NV; ++i) {
        const int64_t at = ((r - a) * NV + i) * L;
        vec<A> x = load(s + at) * scale, g = load(dp + at), slope = splat(A{1});
        if (mod.softcap > 0) {
          x = soft_cap<A>(x, mod.softcap);
          const vec<A> t = x / mod.softcap;
          slope = 1 - t * t;
        }
        if (mod.key_weight) x += key_term[i];
        if (masked) {
          x = keep[i] ? x : splat(-kInfinity<A>);
          g = keep[i] ? g : vec<A>{};
          slope = keep[i] ? slope : vec<A>{};
        }
        const vec<A> weight = exp2v(x - lse2[r]);
        vec<A> dlogit = weight * (g * gate[r] - delta[r]);
        row_sum += weight * g;
        w_out[i] = weight * gate[r];
        if (masked) {  // a row that holds NaN keeps it from the keys it doesn't see
          dlogit = keep[i] ? dlogit : vec<A>{};
          w_out[i] = keep[i] ? w_out[i] : vec<A>{};
        }
        weight_sum[i] += dlogit;
        out[i] = dlogit * slope;
        store_as(ds_rows + r * ds_width + first + i * L, out[i]);
      }
      if (want_gate) {
        for (int k = 0; k < L; ++k) gate_sum[r] += row_sum[k];
      }
    };
    for (int r = a; r < b; r += kPair<T>) store_weights<NV>(from, r, r + 1 < b, gradient);
    if (!want_key_weight) return;
    for (int32_t i = 0; i < count; ++i) key_sum[tile->position[first + i] - key_begin] += weight_sum[i / L][i % L];
  }
};

ATTN_NAMESPACE_END
