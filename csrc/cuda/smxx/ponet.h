// PoNet's mixing (attn/pool.h, csrc/cpu/ponet.h has the formulas), its last pass, for every architecture; memory-bound.
// Each input is read once in all: q and the parts of long segments before (ponet_sums.h), k in the global stage
// (ponet_keys.h), here segment, o and local, whose window of three stays in registers. Between passes there are sums in
// float32, one row for each 32 tokens.
#pragma once

#include "cuda/ponet_tile.h"

namespace attn::cuda {

// y = (G + maximum of the segment) o + maximum of the window.
template <class T> struct PonetMix {
  static constexpr int kThreads = 128;
  static constexpr int kVector = 4;  // channels of a thread where rows are wide: more would cost it its registers
  using Params = PonetWork;
  struct Shared {};

  static Grid grid(const Params& f) {
    return ChannelItem::grid(PonetTiles::count(f.p.sequences), f.p.channels, f.wide ? kVector : 1, kThreads);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kVector>(f);
    else walk<1>(f);
  }

  template <int V> ATTN_DEVICE static void walk(const Params& f) {
    const PonetParams& p = f.p;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    TokenTile tile;
    if (!PonetTiles::open(p.sequences, mine.item, tile)) return;
    if (tile.outside) return clear_rows<V, T>(p, tile, mine.channel, p.out);
    const PonetTile<T> x(p, tile, mine.channel);
    const float* global = static_cast<const float*>(p.global) + tile.sequence * p.channels + mine.channel;
    const WindowRows<T> local = ponet_local_rows<T>(p, tile.span, mine.channel);
    SlidingMax<V> slide{};
    if (local.half == 1) slide.start(local, x.begin);
    x.cut.for_runs(x.begin, x.end, [&](const SegmentRun& run) {
      float gate[V], G[V];
      if (run.whole()) x.segment_max(run, gate);
      else load_floats(f.maximum + x.home(run), gate);
      load_floats(global, G);
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) gate[i] += G[i];
      const int32_t begin = static_cast<int32_t>(run.begin), end = static_cast<int32_t>(run.end);
      const ChannelRows<const T> o = x.rows(p.o);
      const ChannelRows<T> out = x.results(p.out);
      // Row t, where `top` is the maximum of its window.
      const auto mix = [&](int32_t t, bool kept, const Pack<T, V>& factor, float (&top)[V]) {
        if (kept && !x.special(t)) {
          ATTN_UNROLL
          for (int i = 0; i < V; ++i) top[i] += gate[i] * seam::to_float(factor.x[i]);
        } else {
          float alone[V];  // rare: read again rather than kept
          load_floats(global, alone);
          ATTN_UNROLL
          for (int i = 0; i < V; ++i) top[i] = kept ? alone[i] * seam::to_float(factor.x[i]) : 0;
        }
        store_channels(out.at(t), top);
      };
      if (local.half == 1) neighbours(x, local, o, begin, end, slide, mix);
      else windows<V>(x, local, o, begin, end, mix);
    });
  }

  // A window of three: several rows in flight.
  template <int V, class F>
  ATTN_DEVICE static void neighbours(const PonetTile<T>& x, const WindowRows<T>& local, const ChannelRows<const T>& o,
                                     int32_t begin, int32_t end, SlidingMax<V>& slide, F&& mix) {
    constexpr int kAtOnce = 4;
    ATTN_ROLLED
    for (int32_t t = begin; t < end; t += kAtOnce) {
      Pack<T, V> next[kAtOnce] = {}, factor[kAtOnce] = {};
      bool there[kAtOnce], kept[kAtOnce];
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        const T* row = t + i < end ? local.row(t + i + 1) : nullptr;
        there[i] = row != nullptr;
        if (row) next[i] = load_vector<T, V>(row);
        kept[i] = t + i < end && x.kept(t + i);
        if (kept[i]) factor[i] = load_vector<T, V>(o.at(t + i));
      }
      ATTN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        if (t + i >= end) break;
        float top[V];
        slide.next(there[i], next[i], top);
        mix(t + i, kept[i], factor[i], top);
      }
    }
  }

  template <int V, class F>
  ATTN_DEVICE static void windows(const PonetTile<T>& x, const WindowRows<T>& local, const ChannelRows<const T>& o,
                                  int32_t begin, int32_t end, F&& mix) {
    ATTN_ROLLED
    for (int32_t t = begin; t < end; ++t) {
      const bool kept = x.kept(t);
      Pack<T, V> factor = {};
      float top[V];
      set_channels(top, -INFINITY);
      if (kept) {
        factor = load_vector<T, V>(o.at(t));
        local.template for_window<V>(t, [&](const Pack<T, V>& row) {
          ATTN_UNROLL
          for (int i = 0; i < V; ++i) top[i] = max_or_nan(top[i], seam::to_float(row.x[i]));
        });
      }
      mix(t, kept, factor, top);
    }
  }
};

}  // namespace attn::cuda
