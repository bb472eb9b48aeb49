// Gradients of PoNet's global stage, for every architecture. With p the weights of the keys and dG known:
//   da = p (dG . k - dG . G) / sqrt d,   dk = p dG + da g,   dg = sum da k.
// A block takes the keys of a tile and one head, as in the forward pass: k is read once, and from L1 the second time.
#pragma once

#include "attn/softmax.h"
#include "cuda/join_rows.h"
#include "cuda/ponet_grad_work.h"

namespace attn::cuda {

template <class T> struct PonetKeyGradients {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  using Params = PonetGradWork;
  struct Shared {
    float weight[kPonetTokens], slope[kPonetTokens];  // p, da
    float sum[kWarps][32 * kWide<T>];
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
    const int64_t dim = p.channels / p.heads, head = seam::block_y(), vectors = dim / V;
    int lanes = 1;  // of a key
    while (lanes < 32 && lanes < vectors) lanes *= 2;
    const int lane = seam::lane() % lanes, rows = kThreads / lanes, mine = seam::thread() / lanes;
    const int64_t first_token = tile.span.first + tile.begin, n = tile.end - tile.begin;
    const T* k = static_cast<const T*>(p.k.data) + tile.span.batch * p.k.batch + first_token * p.k.token + head * dim;
    T* dk = static_cast<T*>(f.b.dk) + (tile.span.batch * p.sequences.tokens + first_token) * p.channels + head * dim;
    const int64_t at = tile.sequence * p.channels + head * dim;
    const float *g = static_cast<const float*>(p.pooled) + at, *G = static_cast<const float*>(p.global) + at,
                *dG = f.dglobal + at;
    const auto kept = [&](int r) { return r < n && !tile.outside && taken(p.mask, tile.span.batch, first_token + r); };

    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    for (int first = 0; first < kPonetTokens; first += rows) {
      const int r = first + mine;
      const bool there = kept(r);
      float dot[3] = {0, 0, 0};  // g . k, dG . k, dG . G
      for (int64_t v = lane; there && v < vectors; v += lanes) {
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
      for (int i = 0; i < 3; ++i) {
        for (int step = lanes / 2; step > 0; step /= 2) dot[i] += seam::shuffle_xor(dot[i], step);
      }
      if (lane == 0 && r < kPonetTokens) {
        const float lse = there ? static_cast<const float*>(p.lse)[tile.sequence * p.heads + head] : 0;
        const float w = there ? seam::exp2_fast((dot[0] * scale - lse) * static_cast<float>(kLog2e)) : 0;
        shared.weight[r] = w;
        shared.slope[r] = there ? w * (dot[1] - dot[2]) * scale : 0;
      }
    }
    seam::sync_block();
    if (head == 0 && seam::warp() == 0 && !tile.outside) {
      const uint32_t some = seam::popcount(seam::ballot(kept(seam::lane())));
      if (seam::lane() == 0) f.kept[tile.index] = static_cast<float>(some);
    }

    for (int64_t slab = 0; slab < vectors; slab += lanes) {
      const int64_t v = slab + lane;
      float sum[V], q[V], d[V];
      set_channels(sum, 0);
      set_channels(q, 0);
      set_channels(d, 0);
      if (v < vectors && !tile.outside) {
        load_floats(g + v * V, q);
        load_floats(dG + v * V, d);
      }
      for (int first = 0; first < kPonetTokens; first += rows) {
        const int r = first + mine;
        if (r >= n || v >= vectors) continue;
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
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) {
        for (int step = lanes; step < 32; step *= 2) sum[i] += seam::shuffle_xor(sum[i], step);
        if (seam::lane() < lanes) shared.sum[seam::warp()][lane * V + i] = sum[i];
      }
      seam::sync_block();
      for (int c = seam::thread(); c < lanes * V && slab * V + c < dim; c += kThreads) {
        float total = 0;
        for (int w = 0; w < kWarps; ++w) total += shared.sum[w][c];
        f.sum[tile.index * p.channels + head * dim + slab * V + c] = total;
      }
      seam::sync_block();  // shared.sum is written anew
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
    const JoinItem item = JoinItem::mine<1>();
    const int64_t first = PonetTiles::first(p.sequences, item.group);
    const bool there = item.channel < p.channels;
    float mine[2] = {0, 0}, all[2] = {0, 0};
    const JoinRange range = JoinRange::mine(there ? PonetTiles::tiles(span_inside(p.sequences, item.group)) : 0);
    for (int64_t i = range.begin; i < range.end; ++i) {
      mine[0] += f.sum[(first + i) * p.channels + item.channel];
      if (kQuery) mine[1] += f.kept[first + i];
    }
    for_warps(shared, mine, [&](const float (&x)[2]) {
      all[0] += x[0];
      all[1] += x[1];
    });
    if (seam::warp() != 0 || !there) return;
    const int64_t at = item.group * p.channels + item.channel;
    if (!kQuery) {
      f.dglobal[at] = all[0];
      return;
    }
    f.dmean[at] = all[1] > 0 ? all[0] * (1 / all[1]) : 0;
    if (f.b.dquery) static_cast<float*>(f.b.dquery)[at] = all[0];
  }
};

}  // namespace attn::cuda
