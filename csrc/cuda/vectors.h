// Rows of channels as memory-bound kernels take them: a thread owns a few neighbouring channels and walks tokens. 16
// bytes at a time where every row of a call allows it, else one channel a thread; both are in a kernel, and neither
// has a tail.
#pragma once

#include "attn/pool.h"
#include "cuda/grid.h"
#include "cuda/seam.h"

namespace attn::cuda {

// Channels of a thread where rows allow 16 bytes.
template <class T> constexpr int kWide = 16 / static_cast<int>(sizeof(T));

template <class T, int V> struct alignas(V * sizeof(T)) Pack { T x[V]; };

template <class T, int V> ATTN_DEVICE Pack<T, V> load_vector(const T* p) { return seam::load_whole<Pack<T, V>>(p); }

template <class T, int V> ATTN_DEVICE void unpack_channels(const Pack<T, V>& from, float (&to)[V]) {
  ATTN_UNROLL
  for (int i = 0; i < V; ++i) to[i] = seam::to_float(from.x[i]);
}

template <class T, int V> ATTN_DEVICE void load_channels(const T* p, float (&to)[V]) {
  unpack_channels(load_vector<T, V>(p), to);
}

template <class T, int V> ATTN_DEVICE void store_channels(T* p, const float (&from)[V]) {
  constexpr int kEach = V < kWide<T> ? V : kWide<T>;
  ATTN_UNROLL
  for (int i = 0; i < V; i += kEach) {
    Pack<T, kEach> x;
    ATTN_UNROLL
    for (int j = 0; j < kEach; ++j) x.x[j] = seam::from_float<T>(from[i + j]);
    seam::store_whole(p + i, x);
  }
}

template <int V> ATTN_DEVICE void set_channels(float (&x)[V], float value) {
  ATTN_UNROLL
  for (int i = 0; i < V; ++i) x[i] = value;
}

// Words of scratch, V at a time.
template <int V, class Word> ATTN_DEVICE void load_words(const Word* p, Word (&to)[V]) {
  static_assert(sizeof(Word) == 4);
  constexpr int kEach = V < 4 ? V : 4;
  ATTN_UNROLL
  for (int i = 0; i < V; i += kEach) {
    const auto x = seam::load_whole<Pack<Word, kEach>>(p + i);
    ATTN_UNROLL
    for (int j = 0; j < kEach; ++j) to[i + j] = x.x[j];
  }
}
template <int V> ATTN_DEVICE void load_floats(const float* p, float (&to)[V]) { load_words(p, to); }

// A NaN wins, as in the CPU's kernels.
ATTN_DEVICE float max_or_nan(float m, float x) { return x > m || x != x ? x : m; }

// Calls f(token, pack) for the tokens of [begin, end) for which row(token) isn't null, in order, with loads of several
// rows in flight.
template <int V, class T, class Row, class F>
ATTN_DEVICE void for_rows(int32_t begin, int32_t end, Row&& row, F&& f) {
  constexpr int kAtOnce = 4;
  ATTN_ROLLED
  for (int32_t t = begin; t < end; t += kAtOnce) {
    Pack<T, V> x[kAtOnce];
    bool there[kAtOnce];
    ATTN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const T* p = t + i < end ? row(t + i) : nullptr;
      there[i] = p != nullptr;
      if (there[i]) x[i] = load_vector<T, V>(p);
    }
    ATTN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (there[i]) f(t + i, x[i]);
    }
  }
}

// Which item and channels a thread has where `items` x channels are dealt out to blocks in a row.
struct ChannelItem {
  int64_t item, channel;

  static Grid grid(int64_t items, int64_t channels, int vector, int threads) {
    return {(items * (channels / vector) + threads - 1) / threads};
  }
  template <int V> ATTN_DEVICE static ChannelItem mine(int64_t channels, int threads) {
    const int64_t index = static_cast<int64_t>(seam::block_x()) * threads + seam::thread(), vectors = channels / V;
    const int64_t item = index / vectors;
    return {item, (index - item * vectors) * V};
  }
};

}  // namespace attn::cuda
