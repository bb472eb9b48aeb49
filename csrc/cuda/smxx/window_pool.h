// Window pooling (attn/pool.h) and its gradient, for every architecture; memory-bound. A thread walks the tokens of a
// tile; the rows of its neighbours' windows come from the caches.
#pragma once

#include "cuda/token_tiles.h"
#include "cuda/wide_rows.h"
#include "cuda/window_rows.h"

namespace attn::cuda {

constexpr int kWindowTokens = 32;  // of a tile, whose neighbours read a window's reach of its rows again
using WindowTiles = TokenTiles<kWindowTokens>;

template <class T>
ATTN_DEVICE WindowRows<T> window_rows(const WindowPoolParams& p, const SequenceSpan& s, int64_t channel) {
  return {static_cast<const T*>(p.x.data) + s.batch * p.x.batch + s.first * p.x.token + channel,
          p.x.token,
          static_cast<int32_t>(s.length),
          window_half(p.window, s.length),
          static_cast<int32_t>(p.dilation),
          s.batch,
          s.first,
          p.mask,
          MaskView{nullptr, 0, 0}};
}

template <class T> struct WindowPool {
  static constexpr int kThreads = 256;
  using Params = WideCall<WindowPoolParams>;
  struct Shared {};

  static Grid grid(const Params& f) {
    return ChannelItem::grid(WindowTiles::count(f.p.sequences), f.p.channels, f.wide ? kWide<T> : 1, kThreads);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f.p);
    else walk<1>(f.p);
  }

  template <int V> ATTN_DEVICE static void walk(const WindowPoolParams& p) {
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    TokenTile tile;
    if (!WindowTiles::open(p.sequences, mine.item, tile)) return;
    const WindowRows<T> x = window_rows<T>(p, tile.span, mine.channel);
    T* out =
        static_cast<T*>(p.out) + (tile.span.batch * p.sequences.tokens + tile.span.first) * p.channels + mine.channel;
    if (!p.mean && x.half == 1 && x.dilation == 1 && !tile.outside) return slide<V>(p, tile, x, out);
    for (int32_t t = tile.begin; t < tile.end; ++t) {
      float y[V];
      set_channels(y, 0);
      if (!tile.outside && x.takes_part(t)) {
        if (p.mean) mean(p, x, t, y);
        else maximum(x, t, y);
      }
      store_channels(out + t * p.channels, y);
    }
  }

  template <int V> ATTN_DEVICE static void maximum(const WindowRows<T>& x, int32_t t, float (&y)[V]) {
    set_channels(y, -INFINITY);
    x.template for_window<V>(t, [&](const Pack<T, V>& row) {
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) y[i] = max_or_nan(y[i], seam::to_float(row.x[i]));
    });
  }

  template <int V>
  ATTN_DEVICE static void mean(const WindowPoolParams& p, const WindowRows<T>& x, int32_t t, float (&y)[V]) {
    int32_t n = 0;
    x.template for_window<V>(t, [&](const Pack<T, V>& row) {
      ++n;
      ATTN_UNROLL
      for (int i = 0; i < V; ++i) y[i] += seam::to_float(row.x[i]);
    });
    const float factor = 1 / static_cast<float>(p.count_include_pad ? p.window : n);
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) y[i] *= factor;
  }

  // Maximum of three neighbours.
  template <int V>
  ATTN_DEVICE static void slide(const WindowPoolParams& p, const TokenTile& tile, const WindowRows<T>& x, T* out) {
    SlidingMax<V> window;
    window.start(x, tile.begin);
    window.walk(x, tile.begin, tile.end, [&](int32_t t, float (&top)[V]) {
      if (!x.takes_part(t)) set_channels(top, 0);
      store_channels(out + t * p.channels, top);
    });
  }
};

template <class T> struct WindowGradient {
  static constexpr int kThreads = 256;
  using Params = WideCall<WindowPoolBackwardParams>;
  struct Shared {};

  static Grid grid(const Params& f) {
    const WindowPoolParams& p = f.p.forward;
    return ChannelItem::grid(WindowTiles::count(p.sequences), p.channels, f.wide ? kWide<T> : 1, kThreads);
  }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f.p);
    else walk<1>(f.p);
  }

  template <int V> ATTN_DEVICE static void walk(const WindowPoolBackwardParams& b) {
    const WindowPoolParams& p = b.forward;
    const ChannelItem mine = ChannelItem::mine<V>(p.channels, kThreads);
    TokenTile tile;
    if (!WindowTiles::open(p.sequences, mine.item, tile)) return;
    const SequenceSpan& s = tile.span;
    const WindowRows<T> x = window_rows<T>(p, s, mine.channel);
    const T* dy = static_cast<const T*>(b.dout.data) + s.batch * b.dout.batch + s.first * b.dout.token + mine.channel;
    T* dx = static_cast<T*>(b.dx) + (s.batch * p.sequences.tokens + s.first) * p.channels + mine.channel;
    for (int32_t t = tile.begin; t < tile.end; ++t) {
      float g[V];
      set_channels(g, 0);
      if (!tile.outside) {
        if (p.mean) mean(b, x, dy, t, g);
        else window_max_gradient(x, dy, b.dout.token, t, g);
      }
      store_channels(dx + t * p.channels, g);
    }
  }

  // Sum over the windows that row j is in, each divided by its rows.
  template <int V>
  ATTN_DEVICE static void mean(const WindowPoolBackwardParams& b, const WindowRows<T>& x, const T* dy, int32_t j,
                               float (&sum)[V]) {
    const WindowPoolParams& p = b.forward;
    if (!x.takes_part(j)) return;
    const WindowBounds windows = x.bounds(j);
    const int64_t reach = int64_t{x.half} * x.dilation;
    const auto counts = [&](int64_t at) { return at >= 0 && at < x.length && x.takes_part(at); };
    int64_t n = p.window;
    if (!p.count_include_pad) {
      const WindowBounds rows = x.bounds(windows.first);
      n = 0;
      for (int64_t at = rows.first; at <= rows.last; at += x.dilation) n += x.takes_part(at);
    }
    for (int64_t l = windows.first; l <= windows.last; l += x.dilation) {
      if (x.takes_part(l)) {
        const float factor = 1 / static_cast<float>(n);
        float g[V];
        load_channels(dy + l * b.dout.token, g);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) sum[i] += g[i] * factor;
      }
      if (!p.count_include_pad) n += counts(l + reach + x.dilation) - counts(l - reach);  // of the next window
    }
  }
};

}  // namespace attn::cuda
