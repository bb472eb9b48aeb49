// PoNet's global stage: one query against all keys, which are their own values. A block takes the keys of a tile and
// one head: logits, their softmax, and the weighted sum of the keys, whose rows come from L1 the second time. Tiles are
// then merged in order.
#pragma once

#include "attn/softmax.h"
#include "cuda/ponet_head.h"
#include "cuda/ponet_join.h"

namespace attn::cuda {

template <class T> struct PonetKeys {
  static constexpr int kThreads = kHeadThreads;
  using Params = PonetWork;
  struct Shared {
    float logit[kPonetTokens];
    HeadShared<kWide<T>> sums;
  };
  static_assert(kPonetTokens == 32);

  static Grid grid(const Params& f) { return {PonetTiles::count(f.p.sequences), f.p.heads}; }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    if (f.wide_heads) walk<kWide<T>>(f, shared);
    else walk<1>(f, shared);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f, Shared& shared) {
    const PonetParams& p = f.p;
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, seam::block_x(), tile) || tile.outside) return;  // the whole block
    const HeadRows h = HeadRows::open<V>(p);
    const T* k = static_cast<const T*>(p.k.data) + tile.span.batch * p.k.batch +
                 (tile.span.first + tile.begin) * p.k.token + h.head * h.dim;
    const float* g = static_cast<const float*>(p.pooled) + tile.sequence * p.channels + h.head * h.dim;
    const auto kept = [&](int r) {
      return r < tile.end - tile.begin && taken(p.mask, tile.span.batch, tile.span.first + tile.begin + r);
    };

    const float scale = static_cast<float>(kLog2e) / std::sqrt(static_cast<float>(h.dim));
    for (int first = 0; first < kPonetTokens; first += h.rows) {
      const int r = first + h.mine;
      const bool there = kept(r);
      float dot = 0;
      for (int64_t v = h.lane; there && v < h.vectors; v += h.lanes) {
        float x[V], q[V];
        load_channels(k + r * p.k.token + v * V, x);
        load_floats(g + v * V, q);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) dot += x[i] * q[i];
      }
      dot = h.sum_lanes(dot);
      if (h.lane == 0 && r < kPonetTokens) shared.logit[r] = there ? dot * scale : -INFINITY;
    }
    seam::sync_block();

    // A lane has a key's weight; every warp has them all.
    const float logit = shared.logit[seam::lane()];
    float m = logit;
    for (int step = 16; step > 0; step /= 2) m = max_or_nan(m, seam::shuffle_xor(m, step));
    const float weight = m == -INFINITY ? 0 : seam::exp2_fast(logit - m);
    float l = weight;
    for (int step = 16; step > 0; step /= 2) l += seam::shuffle_xor(l, step);
    if (seam::thread() == 0) {
      float* state = f.state + (tile.index * p.heads + h.head) * 2;
      state[0] = m;
      state[1] = l;
    }

    for (int64_t slab = 0; slab < h.vectors; slab += h.lanes) {
      const int64_t v = slab + h.lane;
      float sum[V];
      set_channels(sum, 0);
      for (int first = 0; first < kPonetTokens; first += h.rows) {
        const int r = first + h.mine;
        const float w = seam::shuffle(weight, r % kPonetTokens);
        if (v >= h.vectors || !kept(r)) continue;  // what is masked is never read, even if weights are NaN
        float x[V];
        load_channels(k + r * p.k.token + v * V, x);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) sum[i] += w * x[i];
      }
      h.sum_rows(shared.sums, sum, slab, f.sum + tile.index * p.channels + h.head * h.dim);
    }
  }
};

// A block merges the tiles of a sequence, 32 channels.
struct PonetGlobal {
  static constexpr int kThreads = kJoinThreads;
  using Params = PonetWork;
  using Shared = JoinShared<3>;

  // Maximum of the logits, sum of weights, weighted sum.
  struct State {
    float x[3] = {-INFINITY, 0, 0};

    ATTN_DEVICE void add(const float (&y)[3]) {
      const float m = max_or_nan(x[0], y[0]);
      if (m == -INFINITY) return;
      const float a = seam::exp2_fast(x[0] - m), b = seam::exp2_fast(y[0] - m);
      x[0] = m;
      x[1] = x[1] * a + y[1] * b;
      x[2] = x[2] * a + y[2] * b;
    }
  };

  static Grid grid(const Params& f) { return JoinItem::grid(f.p.sequences.count, f.p.channels, 1); }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    const PonetParams& p = f.p;
    const SequenceTiles tiles(p);
    const int64_t dim = p.channels / p.heads, head = tiles.channel / dim;
    State mine, all;
    for (int64_t i = tiles.range.begin; i < tiles.range.end; ++i) {
      const float* state = f.state + (i * p.heads + head) * 2;
      const float y[3] = {state[0], state[1], f.sum[i * p.channels + tiles.channel]};
      mine.add(y);
    }
    for_warps(shared, mine.x, [&](const float (&x)[3]) { all.add(x); });
    if (seam::warp() != 0 || !tiles.there) return;
    float factor, lse;
    finish_row(all.x[0], all.x[1], -INFINITY, factor, lse);
    static_cast<float*>(p.global)[tiles.sequence * p.channels + tiles.channel] = all.x[2] * factor;
    if (tiles.channel % dim == 0) static_cast<float*>(p.lse)[tiles.sequence * p.heads + head] = lse;
  }
};

}  // namespace attn::cuda
