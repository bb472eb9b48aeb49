// Gradients of PoNet's global stage, for every architecture. With p the weights of the keys and dG known:
//   da = p (dG . k - dG . G) / sqrt d,   dk = p dG + da g,   dg = sum da k.
// A block takes the keys of a tile and one head, as in the forward pass: k is read once, and from L1 the second time.
#pragma once

#include "attn/softmax.h"
#include "cuda/ponet_grad_work.h"
#include "cuda/ponet_head.h"
#include "cuda/ponet_join.h"

namespace attn::cuda {

template <class T> struct PonetKeyGradients {
  static constexpr int kThreads = kHeadThreads;
  using Params = PonetGradWork;
  struct Shared {
    float weight[kPonetTokens], slope[kPonetTokens];  // p, da
    HeadShared<kWide<T>> sums;
  };
  static_assert(kPonetTokens == 32);

  static Grid grid(const Params& f) {
    return {f.wants_keys() ? PonetTiles::count(f.b.forward.sequences) : 0, f.b.forward.heads};
  }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    if (f.wide_heads) walk<kWide<T>>(f, shared);
    else walk<1>(f, shared);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f, Shared& shared) {
    const PonetParams& p = f.b.forward;
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, seam::block_x(), tile)) return;  // the whole block
    const HeadRows h = HeadRows::open<V>(p);
    const int64_t first_token = tile.span.first + tile.begin, n = tile.end - tile.begin, channel = h.head * h.dim;
    const T* k = static_cast<const T*>(p.k.data) + tile.span.batch * p.k.batch + first_token * p.k.token + channel;
    T* dk = static_cast<T*>(f.b.dk) + (tile.span.batch * p.sequences.tokens + first_token) * p.channels + channel;
    const int64_t at = tile.sequence * p.channels + channel;
    const float *g = static_cast<const float*>(p.pooled) + at, *G = static_cast<const float*>(p.global) + at,
                *dG = f.dglobal + at;
    const auto kept = [&](int r) { return r < n && !tile.outside && taken(p.mask, tile.span.batch, first_token + r); };

    const float scale = 1 / std::sqrt(static_cast<float>(h.dim));
    for (int first = 0; first < kPonetTokens; first += h.rows) {
      const int r = first + h.mine;
      const bool there = kept(r);
      float dot[3] = {0, 0, 0};  // g . k, dG . k, dG . G
      for (int64_t v = h.lane; there && v < h.vectors; v += h.lanes) {
        float x[V], q[V], d[V], a[V];
        load_channels(k + r * p.k.token + v * V, x);
        load_floats(g + v * V, q);
        load_floats(dG + v * V, d);
        load_floats(G + v * V, a);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) {
          dot[0] += x[i] * q[i];
          dot[1] += x[i] * d[i];
          dot[2] += a[i] * d[i];
        }
      }
      ATTN_UNROLL
      for (int i = 0; i < 3; ++i) dot[i] = h.sum_lanes(dot[i]);
      if (h.lane == 0 && r < kPonetTokens) {
        const float lse = there ? static_cast<const float*>(p.lse)[tile.sequence * p.heads + h.head] : 0;
        const float w = there ? seam::exp2_fast((dot[0] * scale - lse) * static_cast<float>(kLog2e)) : 0;
        shared.weight[r] = w;
        shared.slope[r] = there ? w * (dot[1] - dot[2]) * scale : 0;
      }
    }
    seam::sync_block();
    if (h.head == 0 && seam::warp() == 0 && !tile.outside) {
      const uint32_t some = seam::popcount(seam::ballot(kept(seam::lane())));
      if (seam::lane() == 0) f.kept[tile.index] = static_cast<float>(some);
    }

    for (int64_t slab = 0; slab < h.vectors; slab += h.lanes) {
      const int64_t v = slab + h.lane;
      float sum[V], q[V], d[V];
      set_channels(sum, 0);
      set_channels(q, 0);
      set_channels(d, 0);
      if (v < h.vectors && !tile.outside) {
        load_floats(g + v * V, q);
        load_floats(dG + v * V, d);
      }
      for (int first = 0; first < kPonetTokens; first += h.rows) {
        const int r = first + h.mine;
        if (r >= n || v >= h.vectors) continue;
        const float w = shared.weight[r], slope = shared.slope[r];
        if (kept(r)) {  // what is masked is never read
          float x[V];
          load_channels(k + r * p.k.token + v * V, x);
          ATTN_UNROLL
          for (int i = 0; i < V; ++i) sum[i] += slope * x[i];
        }
        if (!f.b.dk) continue;
        float y[V];
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) y[i] = w * d[i] + slope * q[i];
        store_channels(dk + r * p.channels + v * V, y);
      }
      if (tile.outside) continue;  // the whole block
      h.sum_rows(shared.sums, sum, slab, f.sum + tile.index * p.channels + channel);
    }
  }
};

// Sums over the tiles of a sequence: those of t are dG; those of da k are dg. A block has 32 channels.
template <bool kQuery> struct PonetSequenceSums {
  static constexpr int kThreads = kJoinThreads;
  using Params = PonetGradWork;
  using Shared = JoinShared<2>;

  static Grid grid(const Params& f) {
    return JoinItem::grid(f.wants_keys() ? f.b.forward.sequences.count : 0, f.b.forward.channels, 1);
  }

  ATTN_DEVICE static void run(const Params& f, Shared& shared) {
    const PonetParams& p = f.b.forward;
    const SequenceTiles tiles(p);
    float all[2];
    sum_tiles<kQuery>(shared, tiles, p.channels, f.sum, f.kept, all);
    if (seam::warp() != 0 || !tiles.there) return;
    const int64_t at = tiles.sequence * p.channels + tiles.channel;
    if (!kQuery) {
      f.dglobal[at] = all[0];
      return;
    }
    f.dmean[at] = all[1] > 0 ? all[0] * (1 / all[1]) : 0;
    if (f.b.dquery) static_cast<float*>(f.b.dquery)[at] = all[0];
  }
};

}  // namespace attn::cuda
