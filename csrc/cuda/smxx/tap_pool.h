// Token-aware average pooling (attn/pool.h) and its gradient, for every architecture. A block takes a tile of pixels by
// eight vectors of channels, a cache line in 16 bits: the rows that its neighbourhoods share come from L1.
#pragma once

#include "cuda/vectors.h"
#include "cuda/wide_rows.h"

namespace attn::cuda {

// The pixels of a block. Eight lanes have a pixel: neighbours of a row of eight are in a block, four rows at a time.
struct TapTile {
  static constexpr int kThreads = 256, kLanes = 8, kWidth = 8, kRows = kThreads / kLanes / kWidth;

  int64_t batch, top, left;

  static int64_t count(const TapPoolParams& p, int64_t height) {
    return p.batch * ((p.height + height - 1) / height) * ((p.width + kWidth - 1) / kWidth);
  }
  ATTN_DEVICE static TapTile mine(const TapPoolParams& p, int64_t height) {
    const int64_t columns = (p.width + kWidth - 1) / kWidth, rows = (p.height + height - 1) / height;
    const int64_t index = seam::block_x();
    return {index / columns / rows, index / columns % rows * height, index % columns * kWidth};
  }
  ATTN_DEVICE static int lane() { return seam::thread() % kLanes; }
  ATTN_DEVICE int64_t x() const { return left + seam::thread() / kLanes % kWidth; }
  ATTN_DEVICE int64_t y() const { return top + seam::thread() / kLanes / kWidth; }
};

template <class T> struct TapImage {
  const TapPoolParams& p;
  int64_t batch;

  ATTN_DEVICE bool inside(int64_t y, int64_t x) const { return y >= 0 && y < p.height && x >= 0 && x < p.width; }
  ATTN_DEVICE const T* pixel(const TokenView& v, int64_t y, int64_t x) const {
    return static_cast<const T*>(v.data) + batch * v.batch + (y * p.width + x) * v.token;
  }
  ATTN_DEVICE float weight(int64_t y, int64_t x, int64_t scale) const {
    return seam::to_float(pixel(p.weights, y, x)[scale]) / (p.dilation[scale] == 0 ? 1 : 9);
  }
  // sum += factor(y, x) times the rows of `v` around (y, x) at the distance of `scale`; the pixel itself for 0.
  template <int V, class Factor>
  ATTN_DEVICE void add(const TokenView& v, int64_t y, int64_t x, int64_t scale, int64_t channel, Factor&& factor,
                       float (&sum)[V]) const {
    const int64_t d = p.dilation[scale];
    ATTN_ROLLED
    for (int64_t i = d == 0 ? 0 : -1; i <= (d == 0 ? 0 : 1); ++i) {
      Pack<T, V> rows[3];
      bool there[3];
      ATTN_UNROLL
      for (int j = 0; j < 3; ++j) {
        there[j] = (d > 0 || j == 1) && inside(y + i * d, x + (j - 1) * d);
        if (there[j]) rows[j] = load_vector<T, V>(pixel(v, y + i * d, x + (j - 1) * d) + channel);
      }
      ATTN_UNROLL
      for (int j = 0; j < 3; ++j) {
        if (!there[j]) continue;
        const float f = factor(y + i * d, x + (j - 1) * d);
        ATTN_UNROLL
        for (int c = 0; c < V; ++c) sum[c] += f * seam::to_float(rows[j].x[c]);
      }
    }
  }
};

constexpr int64_t kTapHeight = 16;  // of a tile whose threads walk down; shares more rows than a low one

// What the forward pass and the gradient of x have in common: a thread computes the pixels of a column of a tile.
template <class T> struct TapColumns {
  static Grid grid(const TapPoolParams& p, bool wide) {
    const int64_t vectors = p.channels / (wide ? kWide<T> : 1);
    return {TapTile::count(p, kTapHeight), (vectors + TapTile::kLanes - 1) / TapTile::kLanes};
  }

  // to[pixel] = what sum(image, y, x, scale, channel, out) adds to `out`, scale after scale.
  template <int V, class Sum> ATTN_DEVICE static void walk(const TapPoolParams& p, void* to, Sum&& sum) {
    const TapTile tile = TapTile::mine(p, kTapHeight);
    const TapImage<T> image{p, tile.batch};
    const int64_t channel = (int64_t{seam::block_y()} * TapTile::kLanes + TapTile::lane()) * V, x = tile.x();
    if (x >= p.width || channel >= p.channels) return;
    for (int64_t y = tile.y(); y < p.height && y < tile.top + kTapHeight; y += TapTile::kRows) {
      float out[V];
      set_channels(out, 0);
      for (int64_t k = 0; k < p.scales; ++k) sum(image, y, x, k, channel, out);
      store_channels(static_cast<T*>(to) + ((tile.batch * p.height + y) * p.width + x) * p.channels + channel, out);
    }
  }
};

template <class T> struct TapForward {
  static constexpr int kThreads = TapTile::kThreads;
  using Params = WideCall<TapPoolParams>;
  struct Shared {};
  static Grid grid(const Params& f) { return TapColumns<T>::grid(f.p, f.wide); }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f.p);
    else walk<1>(f.p);
  }

  template <int V> ATTN_DEVICE static void walk(const TapPoolParams& p) {
    TapColumns<T>::template walk<V>(
        p, p.out, [&](const TapImage<T>& image, int64_t y, int64_t x, int64_t k, int64_t channel, float (&out)[V]) {
          float sum[V];
          set_channels(sum, 0);
          image.add(p.x, y, x, k, channel, [](int64_t, int64_t) { return 1.f; }, sum);
          const float weight = image.weight(y, x, k);
          ATTN_UNROLL
          for (int c = 0; c < V; ++c) out[c] += sum[c] * weight;
        });
  }
};

// dx = sum_k P_k^T (weights_k dy): the same neighbourhoods seen from the other side.
template <class T> struct TapGradient {
  static constexpr int kThreads = TapTile::kThreads;
  using Params = WideCall<TapPoolBackwardParams>;
  struct Shared {};
  static Grid grid(const Params& f) { return f.p.dx ? TapColumns<T>::grid(f.p.forward, f.wide) : Grid{0}; }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f.p);
    else walk<1>(f.p);
  }

  template <int V> ATTN_DEVICE static void walk(const TapPoolBackwardParams& b) {
    TapColumns<T>::template walk<V>(
        b.forward, b.dx,
        [&](const TapImage<T>& image, int64_t y, int64_t x, int64_t k, int64_t channel, float (&out)[V]) {
          image.add(b.dout, y, x, k, channel, [&](int64_t i, int64_t j) { return image.weight(i, j, k); }, out);
        });
  }
};

// dweights_k = P_k(x) . dy: the lanes of a pixel share its channels.
template <class T> struct TapWeightGradient {
  static constexpr int kThreads = TapTile::kThreads;
  using Params = WideCall<TapPoolBackwardParams>;
  struct Shared {};

  static Grid grid(const Params& f) { return {f.p.dweights ? TapTile::count(f.p.forward, TapTile::kRows) : 0}; }

  ATTN_DEVICE static void run(const Params& f, Shared&) {
    if (f.wide) walk<kWide<T>>(f.p);
    else walk<1>(f.p);
  }

  template <int V> ATTN_DEVICE static void walk(const TapPoolBackwardParams& b) {
    const TapPoolParams& p = b.forward;
    const TapTile tile = TapTile::mine(p, TapTile::kRows);
    const TapImage<T> image{p, tile.batch};
    const int64_t x = tile.x(), y = tile.y();
    const bool there = image.inside(y, x);
    for (int64_t k = 0; k < p.scales; ++k) {
      float dot = 0;
      for (int64_t c = TapTile::lane() * V; there && c < p.channels; c += TapTile::kLanes * V) {
        float sum[V], dy[V];
        set_channels(sum, 0);
        load_channels(image.pixel(b.dout, y, x) + c, dy);
        image.add(p.x, y, x, k, c, [](int64_t, int64_t) { return 1.f; }, sum);
        ATTN_UNROLL
        for (int i = 0; i < V; ++i) dot += sum[i] * dy[i];
      }
      for (int step = TapTile::kLanes / 2; step > 0; step /= 2) dot += seam::shuffle_xor(dot, step);
      if (!there || TapTile::lane() != 0) continue;
      static_cast<T*>(b.dweights)[((tile.batch * p.height + y) * p.width + x) * p.scales + k] =
          seam::from_float<T>(dot / (p.dilation[k] == 0 ? 1 : 9));
    }
  }
};

}  // namespace attn::cuda
