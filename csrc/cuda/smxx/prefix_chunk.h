// A chunk of a head's tokens as a thread of prefix-softmax pooling sees it, and sums of weights e^(x - top).
#pragma once

#include "cuda/prefix_work.h"
#include "cuda/scan_rows.h"
#include "cuda/scan_segments.h"
#include "cuda/vectors.h"

namespace attn::cuda {

// e^(x - top); 0 where x is -inf, of which there is nothing, whatever top is.
ATTN_DEVICE float weight_below(float x, float top) { return x == -INFINITY ? 0 : exp_of(x - top); }

// The maximum of the x so far, and what the last one does to sums of e^(x - top): keep sum + weight.
struct RunningTop {
  float top = -INFINITY, keep = 0, weight = 0;

  ATTN_DEVICE void take(float x) {
    const float last = top;
    top = x > top ? x : top;
    keep = weight_below(last, top);
    weight = weight_below(x, top);
  }
  // A value whose weight is 0 isn't read: it may be anything.
  ATTN_DEVICE float add(float sum, float value) const { return sum * keep + (weight == 0 ? 0 : weight * value); }
};

template <class T> struct PrefixChunk {
  ScanSegment at;  // tokens [at.begin, at.end) of the sequence
  int64_t head;

  // Item: slot * heads + head. False if it has no tokens.
  ATTN_DEVICE bool open(const PrefixWork& w, int64_t item) {
    if (item >= w.chunks.slots() * w.p.heads) return false;
    head = item % w.p.heads;
    return open_segment(w.chunks, item / w.p.heads, at);
  }

  ATTN_DEVICE float score(const PrefixWork& w, int64_t i) const {
    const View3& s = w.p.score;
    return seam::to_float(static_cast<const T*>(s.data)[at.batch * s.batch + head * s.head + (at.token + i) * s.token]);
  }
  // Of a [B, H, T] tensor of statistics.
  ATTN_DEVICE int64_t place(const PrefixWork& w, int64_t i) const {
    return (at.batch * w.p.heads + head) * w.p.tokens + at.token + i;
  }
  // In place of the score in the backward pass.
  ATTN_DEVICE float minus_lse(const PrefixWork& w, int64_t i) const {
    const float lse = static_cast<const float*>(w.p.lse)[place(w, i)];
    return lse == -INFINITY ? lse : -lse;
  }
  ATTN_DEVICE const T* value(const PrefixWork& w, int64_t i) const {
    return scan_row<const T>(w.p.v, at.batch, head / (w.p.heads / w.p.heads_v), at.token + i);
  }
  ATTN_DEVICE T* row(const View4& x, int64_t i) const { return scan_row<T>(x, at.batch, head, at.token + i); }
};

// What a thread has of a chunk: V neighbouring channels or, in the place after the last ones, the number.
struct PrefixPart {
  int64_t item, channel;
  bool number;

  template <class T> static Grid grid(const PrefixWork& w, int threads) {
    const int64_t parts = w.p.dim / (w.wide ? kWide<T> : 1) + 1;
    return {(w.chunks.slots() * w.p.heads * parts + threads - 1) / threads};
  }
  template <int V> ATTN_DEVICE static PrefixPart mine(const PrefixWork& w, int threads) {
    const int64_t index = static_cast<int64_t>(seam::block_x()) * threads + seam::thread(), parts = w.p.dim / V + 1;
    const int64_t channel = index % parts * V;
    return {index / parts, channel, channel == w.p.dim};
  }
  ATTN_DEVICE int64_t place(const PrefixWork& w) const { return item * (w.p.dim + 1) + channel; }
};

}  // namespace attn::cuda
