// Rows of a tensor on their way into a product: feature maps, masked rows, rows times a number of their own. Read
// sixteen bytes at a time where the tensor allows it.
#pragma once

#include "attn/softmax.h"
#include "cuda/scan_params.h"
#include "cuda/seam.h"
#include "cuda/sm80/shared_rows.h"
#include "cuda/taylor2.h"

namespace attn::cuda {

template <class T> struct alignas(16) Eight { T x[8]; };

ATTN_DEVICE float exp_of(float x) { return seam::exp2_fast(x * static_cast<float>(kLog2e)); }

// y = phi(y)
ATTN_DEVICE void map_features(FeatureMap map, float (&y)[8]) {
#define ATTN_MAP(M)                                                                                           \
  case FeatureMap::M:                                                                                         \
    ATTN_UNROLL                                                                                               \
    for (int i = 0; i < 8; ++i) y[i] = feature_value<FeatureMap::M>(y[i], [](float x) { return exp_of(x); }); \
    return
  switch (map) {
    ATTN_MAP(elu1);
    ATTN_MAP(relu);
    ATTN_MAP(exp);
    ATTN_MAP(sigmoid);
    default: return;
  }
#undef ATTN_MAP
}

// d phi'(x)
ATTN_DEVICE float map_slope(FeatureMap map, float x, float d) {
#define ATTN_MAP(M)   \
  case FeatureMap::M: \
    return d * feature_slope<FeatureMap::M>(x, feature_value<FeatureMap::M>(x, [](float y) { return exp_of(y); }))
  switch (map) {
    ATTN_MAP(elu1);
    ATTN_MAP(relu);
    ATTN_MAP(exp);
    ATTN_MAP(sigmoid);
    default: return d;
  }
#undef ATTN_MAP
}

ATTN_DEVICE bool row_kept(const MaskView& keep, int64_t batch, int64_t token) {
  return !keep.data || keep.data[batch * keep.batch + token * keep.token] != 0;
}

template <class T> ATTN_DEVICE T* scan_row(const View4& x, int64_t batch, int64_t head, int64_t token) {
  return static_cast<T*>(x.data) + batch * x.batch + head * x.head + token * x.token;
}

// n elements, n <= 8, zeros after.
template <class T> ATTN_DEVICE void read8(const T* x, int64_t n, bool aligned, float (&y)[8]) {
  if (aligned && n == 8) {
    const Eight<T> all = *reinterpret_cast<const Eight<T>*>(x);
    ATTN_UNROLL
    for (int i = 0; i < 8; ++i) y[i] = seam::to_float(all.x[i]);
  } else {
    ATTN_UNROLL
    for (int i = 0; i < 8; ++i) y[i] = i < n ? seam::to_float(x[i]) : 0.0f;
  }
}

// n features from the first one on, n <= 8, zeros after.
template <class T> ATTN_DEVICE void taylor8(const T* x, int64_t dim, int64_t feature, int64_t n, float (&y)[8]) {
  const Taylor2 map(dim);
  const auto element = [&](int64_t i) { return i == 0 ? 1.0f : seam::to_float(x[i - 1]); };
  Taylor2::Place at = map.find(feature);
  ATTN_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i >= n) continue;
    y[i] = element(at.a) * element(at.b) * map.scale(at);
    map.next(at);
  }
}

// The block's kThreads put rows token .. token + count of `rows`, elements column .., into a 64 x 64 tile, zeros past
// both ends. Is all that the calling thread has put finite? kTaylor: the map may be taylor2.
template <class T, int kThreads, bool kTaylor, class Tile>
ATTN_DEVICE bool load_scan_rows(Tile& to, const ScanRows& rows, int64_t batch, int64_t head, int64_t token,
                                int64_t count, int64_t column) {
  const bool aligned = rows_aligned<T>(rows.x);
  bool finite = true;
  ATTN_UNROLL
  for (int i = seam::thread(); i < 64 * 8; i += kThreads) {
    const int row = i / 8, chunk = i % 8;
    const int64_t from = column + 8 * chunk, left = rows.dim - from, n = left < 0 ? 0 : left < 8 ? left : 8;
    float y[8] = {};
    if (row < count && n > 0 && row_kept(rows.keep, batch, token + row)) {
      const T* x = scan_row<const T>(rows.x, batch, head, token + row);
      if (kTaylor && rows.map == FeatureMap::taylor2) {
        taylor8(x, rows.elements, from, n, y);
      } else {
        read8(x + from, n, aligned, y);
        map_features(rows.map, y);
      }
      const float scale = rows.scale ? rows.scale[(batch * rows.heads + head) * rows.tokens + token + row] : 1.0f;
      ATTN_UNROLL
      for (int j = 0; j < 8; ++j) {
        y[j] = j < n ? y[j] * scale : 0.0f;
        finite &= y[j] - y[j] == 0;
      }
    }
    to.put8(row, chunk, y);
  }
  return finite;
}

}  // namespace attn::cuda
