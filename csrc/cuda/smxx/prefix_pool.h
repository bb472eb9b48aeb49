// Prefix-softmax pooling: out_t = sum_{j <= t} e^{s_j} v_j / sum_{j <= t} e^{s_j}. For every architecture;
// memory-bound: v is read twice and out written once. A thread walks the tokens of a chunk for its channels.
#pragma once

#include "cuda/smxx/prefix_chunk.h"

namespace attn::cuda {

// f(token, x, row, i) for the tokens of a chunk in order: x = x_of(token); the channels of its row.
template <int V, class T, class X, class Row, class F>
ATTN_DEVICE void for_prefix_tokens(const ScanSegment& at, bool number, X&& x_of, Row&& row, F&& f) {
  constexpr int kAtOnce = 4;  // loads in flight
  ATTN_ROLLED
  for (int64_t t = at.begin; t < at.end; t += kAtOnce) {
    float x[kAtOnce];
    Pack<T, V> y[kAtOnce];
    ATTN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (t + i >= at.end) continue;
      x[i] = x_of(t + i);
      if (!number) y[i] = load_vector<T, V>(row(t + i));
    }
    ATTN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (t + i < at.end) f(t + i, x[i], y[i]);
    }
  }
}

// What every chunk adds. kGradient: of the backward pass, of PrefixGradWork.
template <class T, bool kGradient> struct PrefixSums {
  static constexpr int kThreads = 128;
  using Params = std::conditional_t<kGradient, PrefixGradWork, PrefixWork>;
  struct Shared {};
  ATTN_HD static const PrefixWork& work(const PrefixWork& w) { return w; }
  ATTN_HD static const PrefixWork& work(const PrefixGradWork& g) { return g.f; }
  static Grid grid(const Params& p) { return PrefixPart::grid<T>(work(p), kThreads); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    if (work(p).wide) add<kWide<T>>(p);
    else add<1>(p);
  }

  template <int V> ATTN_DEVICE static void add(const Params& p) {
    const PrefixWork& w = work(p);
    const PrefixPart part = PrefixPart::mine<V>(w, kThreads);
    PrefixChunk<T> chunk;
    if (!chunk.open(w, part.item)) return;
    float sum[V] = {};
    RunningTop top;
    for_prefix_tokens<V, T>(
        chunk.at, part.number, [&](int64_t t) { return kGradient ? chunk.minus_lse(w, t) : chunk.score(w, t); },
        [&](int64_t t) {
          if constexpr (kGradient) return chunk.row(p.dout, t) + part.channel;
          else return chunk.value(w, t) + part.channel;
        },
        [&](int64_t t, float x, const Pack<T, V>& row) {
          top.take(x);
          if (part.number) {
            float one = 1;
            if constexpr (kGradient) one = p.own[chunk.place(w, t)];
            sum[0] = top.add(sum[0], one);
          } else {
            ATTN_UNROLL
            for (int c = 0; c < V; ++c) sum[c] = top.add(sum[c], seam::to_float(row.x[c]));
          }
        });
    float* to = w.sums + part.place(w);
    ATTN_UNROLL
    for (int c = 0; c < V; ++c) {
      if (c == 0 || !part.number) to[c] = sum[c];
    }
    if (part.number) w.top[part.item] = top.top;
  }
};

// Rows, given the sums before each chunk.
template <class T> struct PrefixRows {
  static constexpr int kThreads = 128;
  using Params = PrefixWork;
  struct Shared {};
  static Grid grid(const Params& w) { return PrefixPart::grid<T>(w, kThreads); }

  ATTN_DEVICE static void run(const Params& w, Shared&) {
    if (w.wide) write<kWide<T>>(w);
    else write<1>(w);
  }

  template <int V> ATTN_DEVICE static void write(const Params& w) {
    const PrefixPart part = PrefixPart::mine<V>(w, kThreads);
    PrefixChunk<T> chunk;
    if (!chunk.open(w, part.item)) return;
    RunningTop top;
    top.top = w.before[part.item];
    const float* from = w.sums + part.item * (w.p.dim + 1);
    float mass = from[w.p.dim], sum[V] = {};
    ATTN_UNROLL
    for (int c = 0; c < V; ++c) {
      if (!part.number) sum[c] = from[part.channel + c];
    }
    for_prefix_tokens<V, T>(
        chunk.at, part.number, [&](int64_t t) { return chunk.score(w, t); },
        [&](int64_t t) { return chunk.value(w, t) + part.channel; },
        [&](int64_t t, float x, const Pack<T, V>& row) {
          top.take(x);
          mass = top.add(mass, 1);
          if (part.number) {
            static_cast<float*>(w.p.lse)[chunk.place(w, t)] = mass == 0 ? -INFINITY : top.top + std::log(mass);
            return;
          }
          const float scale = mass == 0 ? 0 : 1 / mass;
          float out[V];
          ATTN_UNROLL
          for (int c = 0; c < V; ++c) {
            sum[c] = top.add(sum[c], seam::to_float(row.x[c]));
            out[c] = sum[c] * scale;
          }
          store_channels(chunk.row(w.p.out, t) + part.channel, out);
        });
  }
};

}  // namespace attn::cuda
