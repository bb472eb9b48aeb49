// Token-aware average pooling (attn/pool.h, arXiv 2303.11126): per pixel a weighted sum of 3 x 3 means at several
// distances. One work item is a band of image rows; channels are taken a block at a time so that the rows a band looks
// at stay in the cache for all the taps.
#pragma once

#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

constexpr int64_t kBandRows = 4;
constexpr int64_t kTapChannels = 64;
constexpr int kTaps = 9 * kMaxDilations;

template <class T> struct TapCall {
  using S = Sum<T>;
  const TapPoolParams& p;
  const int64_t C, H, W, bands;

  explicit TapCall(const TapPoolParams& params)
      : p(params), C(params.channels), H(params.height), W(params.width), bands((H + kBandRows - 1) / kBandRows) {}

  // Calls f(y, x) for the up to nine neighbours of a pixel that lie in the image; distance 0 is the pixel, nine times.
  template <class F> ATTN_INLINE void neighbours(int64_t y, int64_t x, int64_t d, F&& f) const {
    for (int64_t i = y - d; i <= y + d; i += d) {
      for (int64_t j = x - d; j <= x + d; j += d) {
        if (i >= 0 && i < H && j >= 0 && j < W) f(i, j);
      }
    }
  }

  const T* pixel(const TokenView& v, int64_t batch, int64_t y, int64_t x) const {
    return token_row<const T>(v, batch, y * W + x);
  }

  // Calls f(batch, y, x) for the pixels of a work item.
  template <class F> void for_pixels(int64_t item, F&& f) const {
    const int64_t batch = item / bands, first = item % bands * kBandRows;
    const int64_t last = first + kBandRows < H ? first + kBandRows : H;
    for (int64_t y = first; y < last; ++y) {
      for (int64_t x = 0; x < W; ++x) f(batch, y, x);
    }
  }
};

template <class T> inline void tap_forward(const TapPoolParams& p) {
  using S = Sum<T>;
  const TapCall<T> call(p);
  parallel_runs(p.batch * call.bands, [&](int64_t item, int) {
    for (int64_t c = 0; c < p.channels; c += kTapChannels) {
      const int64_t n = p.channels - c < kTapChannels ? p.channels - c : kTapChannels;
      call.for_pixels(item, [&](int64_t batch, int64_t y, int64_t x) {
        const T* weight = call.pixel(p.weights, batch, y, x);
        const T* rows[kTaps];
        int end[kMaxDilations], count = 0;
        S factor[kMaxDilations];
        for (int64_t k = 0; k < p.scales; ++k) {
          if (p.dilation[k] == 0) {
            rows[count++] = call.pixel(p.x, batch, y, x) + c;
          } else {
            call.neighbours(y, x, p.dilation[k],
                            [&](int64_t i, int64_t j) { rows[count++] = call.pixel(p.x, batch, i, j) + c; });
          }
          end[k] = count;
          factor[k] = to_float(weight[k]) / (p.dilation[k] == 0 ? S{1} : S{9});
        }
        T* out = static_cast<T*>(p.out) + ((batch * call.H + y) * call.W + x) * p.channels + c;
        for_lanes<S>(n, [&](int64_t i, auto w) {
          vec<S> total{};
          int r = 0;
          for (int64_t k = 0; k < p.scales; ++k) {
            vec<S> sum{};
            for (; r < end[k]; ++r) sum += get(rows[r] + i, w);
            total += sum * factor[k];
          }
          put(out + i, total, w);
        });
      });
    }
  });
}

// dx = sum_k P_k^T (weights_k dy), the same neighbourhoods seen from the other side; dweights_k = P_k(x) . dy, summed
// over the channel blocks in order.
template <class T> inline void tap_backward(const TapPoolBackwardParams& b) {
  using S = Sum<T>;
  const TapPoolParams& p = b.forward;
  const TapCall<T> call(p);
  const int64_t pixels = kBandRows * call.W;
  struct Scratch {
    S* sums;
    Scratch(Carve& c, int64_t n) : sums(c.take<S>(n)) {}
  };
  parallel_runs(p.batch * call.bands, [&](int64_t item, int) {
    S* dweights = carve<Scratch>(pixels * p.scales).sums;  // of the item's pixels
    clear_row(dweights, pixels * p.scales);
    for (int64_t c = 0; c < p.channels; c += kTapChannels) {
      const int64_t n = p.channels - c < kTapChannels ? p.channels - c : kTapChannels;
      S* sums = dweights;
      call.for_pixels(item, [&](int64_t batch, int64_t y, int64_t x) {
        const T* dy_here = call.pixel(b.dout, batch, y, x) + c;
        const T *rows[kTaps], *dys[kTaps];
        S factor[kTaps];
        int end[kMaxDilations], count = 0;
        for (int64_t k = 0; k < p.scales; ++k) {
          const auto tap = [&](int64_t i, int64_t j) {
            rows[count] = call.pixel(p.x, batch, i, j) + c;
            dys[count] = call.pixel(b.dout, batch, i, j) + c;
            factor[count++] = to_float(call.pixel(p.weights, batch, i, j)[k]) / (p.dilation[k] == 0 ? S{1} : S{9});
          };
          if (p.dilation[k] == 0) tap(y, x);
          else call.neighbours(y, x, p.dilation[k], tap);
          end[k] = count;
        }
        if (b.dx) {
          T* dx = static_cast<T*>(b.dx) + ((batch * call.H + y) * call.W + x) * p.channels + c;
          for_lanes<S>(n, [&](int64_t i, auto w) {
            vec<S> sum{};
            for (int r = 0; r < count; ++r) sum += get(dys[r] + i, w) * factor[r];
            put(dx + i, sum, w);
          });
        }
        if (b.dweights) {
          int first = 0;
          for (int64_t k = 0; k < p.scales; ++k) {
            vec<S> dot{};
            for_lanes<S>(n, [&](int64_t i, auto w) {
              vec<S> sum{};
              for (int r = first; r < end[k]; ++r) sum += get(rows[r] + i, w);
              dot += sum * get(dy_here + i, w);
            });
            sums[k] += sum_lanes<S>(dot) / (p.dilation[k] == 0 ? S{1} : S{9});
            first = end[k];
          }
        }
        sums += p.scales;
      });
    }
    if (!b.dweights) return;
    const S* sums = dweights;
    call.for_pixels(item, [&](int64_t batch, int64_t y, int64_t x) {
      scale_row<T>(static_cast<T*>(b.dweights) + ((batch * call.H + y) * call.W + x) * p.scales, S{1}, sums, p.scales);
      sums += p.scales;
    });
  });
}

}  // namespace pool

inline void tap_pool_forward(const TapPoolParams& p) { ATTN_POOL_DISPATCH(p.dtype, pool::tap_forward, p) }
inline void tap_pool_backward(const TapPoolBackwardParams& p){
    ATTN_POOL_DISPATCH(p.forward.dtype, pool::tap_backward, p)}

ATTN_NAMESPACE_END
