// PoNet's global stage: one query against all keys, which are their own values. A block takes the keys of a tile and
// one head: logits, their softmax, and the weighted sum of the keys, whose rows come from L1 the second time. Tiles are
// then merged in order.
#pragma once

#include "attn/softmax.h"
#include "cuda/join_rows.h"
#include "cuda/ponet_work.h"
#include "cuda/vectors.h"

namespace attn::cuda {

template <class T> struct PonetKeys {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  using Params = PonetWork;
  struct Shared {
    float logit[kPonetTokens];
    float sum[kWarps][32 * kWide<T>];
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
    const int64_t dim = p.channels / p.heads, head = seam::block_y(), vectors = dim / V;
    int lanes = 1;  // of a key
    while (lanes < 32 && lanes < vectors) lanes *= 2;
    const int lane = seam::lane() % lanes, rows = kThreads / lanes, mine = seam::thread() / lanes;
    const T* k = static_cast<const T*>(p.k.data) + tile.span.batch * p.k.batch +
                 (tile.span.first + tile.begin) * p.k.token + head * dim;
    const float* g = static_cast<const float*>(p.pooled) + tile.sequence * p.channels + head * dim;
    const auto kept = [&](int r) {
      return r < tile.end - tile.begin && taken(p.mask, tile.span.batch, tile.span.first + tile.begin + r);
    };

    const float scale = static_cast<float>(kLog2e) / std::sqrt(static_cast<float>(dim));
    for (int first = 0; first < kPonetTokens; first += rows) {
      const int r = first + mine;
      const bool there = kept(r);
      float dot = 0;
      for (int64_t v = lane; there && v < vectors; v += lanes) {
        float x[V], q[V];
        load_channels(k + r * p.k.token + v * V, x);
        load_floats(g + v * V, q);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) dot += x[i] * q[i];
      }
      for (int step = lanes / 2; step > 0; step /= 2) dot += seam::shuffle_xor(dot, step);
      if (lane == 0 && r < kPonetTokens) shared.logit[r] = there ? dot * scale : -INFINITY;
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
      float* state = f.state + (tile.index * p.heads + head) * 2;
      state[0] = m;
      state[1] = l;
    }

    for (int64_t slab = 0; slab < vectors; slab += lanes) {
      const int64_t v = slab + lane;
      float sum[V];
      set_channels(sum, 0);
      for (int first = 0; first < kPonetTokens; first += rows) {
        const int r = first + mine;
        const float w = seam::shuffle(weight, r % kPonetTokens);
        if (v >= vectors || !kept(r)) continue;  // what is masked is never read, even if weights are NaN
        float x[V];
        load_channels(k + r * p.k.token + v * V, x);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) sum[i] += w * x[i];
      }
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
    const JoinItem item = JoinItem::mine<1>();
    const int64_t first = PonetTiles::first(p.sequences, item.group), dim = p.channels / p.heads;
    const int64_t head = item.channel / dim;
    const bool there = item.channel < p.channels;
    State mine, all;
    const JoinRange range = JoinRange::mine(there ? PonetTiles::tiles(span_inside(p.sequences, item.group)) : 0);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const float* state = f.state + ((first + i) * p.heads + head) * 2;
      const float y[3] = {state[0], state[1], f.sum[(first + i) * p.channels + item.channel]};
      mine.add(y);
    }
    for_warps(shared, mine.x, [&](const float (&x)[3]) { all.add(x); });
    if (seam::warp() != 0 || !there) return;
    float factor, lse;
    finish_row(all.x[0], all.x[1], -INFINITY, factor, lse);
    static_cast<float*>(p.global)[item.group * p.channels + item.channel] = all.x[2] * factor;
    if (item.channel % dim == 0) static_cast<float*>(p.lse)[item.group * p.heads + head] = lse;
  }
};

}  // namespace attn::cuda
