// Gradients of prefix-softmax pooling, sums over later tokens decayed by e^(lse_t - lse_u) <= 1:
//   g_t = sum_{u >= t} e^(lse_t - lse_u) dout_u,  c_t the same for dout_u . out_u - dlse_u
//   dv_t = e^(s_t - lse_t) g_t                    ds_t = e^(s_t - lse_t) (v_t . g_t - c_t)
// For every architecture; memory-bound. A warp walks a chunk from its end, 32 V channels at a time.
#pragma once

#include "cuda/smxx/lane_row.h"
#include "cuda/smxx/prefix_chunk.h"

namespace attn::cuda {

template <class T> struct PrefixGradients {
  static constexpr int kThreads = 128, kWarps = kThreads / 32, kHalves = kPrefixChunk / 32;
  using Params = PrefixGradWork;
  struct Shared {};
  static Grid grid(const Params& g) { return {(g.f.chunks.slots() * g.f.p.heads + kWarps - 1) / kWarps}; }

  ATTN_DEVICE static void run(const Params& g, Shared&) {
    const int64_t item = static_cast<int64_t>(seam::block_x()) * kWarps + seam::warp();
    PrefixChunk<T> chunk;
    if (!chunk.open(g.f, item)) return;
    float dscore[kHalves] = {};  // of tokens lane, lane + 32
    const int lanes = g.f.wide ? 64 : 32;
    ATTN_ROLLED
    for (int64_t column = 0; column == 0 || column < g.f.p.dim; column += lanes) {
      if (g.f.wide) walk<2>(g, item, chunk, column, dscore);
      else walk<1>(g, item, chunk, column, dscore);
    }
    ATTN_UNROLL
    for (int half = 0; half < kHalves; ++half) {
      const int64_t t = chunk.at.begin + 32 * half + seam::lane();
      if (t < chunk.at.end) static_cast<T*>(g.dscore)[chunk.place(g.f, t)] = seam::from_float<T>(dscore[half]);
    }
  }

  template <int V>
  ATTN_DEVICE static void walk(const Params& g, int64_t item, const PrefixChunk<T>& chunk, int64_t column,
                               float (&dscore)[kHalves]) {
    const PrefixWork& w = g.f;
    const int64_t channel = column + V * seam::lane();
    const bool has = channel < w.p.dim;
    const float* from = w.sums + item * (w.p.dim + 1);
    RunningTop top;
    top.top = w.before[item];
    float c = from[w.p.dim], sum[V] = {};
    ATTN_UNROLL
    for (int i = 0; i < V; ++i) {
      if (has) sum[i] = from[channel + i];
    }
    constexpr int kAtOnce = 4;  // loads in flight
    ATTN_ROLLED
    for (int half = kHalves - 1; half >= 0; --half) {
      // Numbers of a token each lane.
      const int64_t first = chunk.at.begin + 32 * half, own_token = first + seam::lane(), left = chunk.at.end - first;
      const bool in = seam::lane() < left;
      const float score = in ? chunk.score(w, own_token) : -INFINITY, lse = in ? chunk.minus_lse(w, own_token) : 0;
      const float own = in ? g.own[chunk.place(w, own_token)] : 0;
      const T *v_row = chunk.value(w, first) + channel, *d_row = chunk.row(g.dout, first) + channel;
      T* dv_row = chunk.row(g.dv, first) + channel;
      float mine = 0;
      ATTN_ROLLED
      for (int last = static_cast<int>(left < 32 ? left : 32) - 1; last >= 0; last -= kAtOnce) {
        Pack<T, V> v[kAtOnce], d[kAtOnce];
        ATTN_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          if (last < i || !has) continue;
          v[i] = load_vector<T, V>(v_row + (last - i) * w.p.v.token);
          d[i] = load_vector<T, V>(d_row + (last - i) * g.dout.token);
        }
        ATTN_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          const int t = last - i;
          if (t < 0) continue;
          top.take(seam::shuffle(lse, t));
          c = top.add(c, seam::shuffle(own, t));
          // e^(s - lse). What it leaves out isn't read.
          const float weight = weight_below(seam::shuffle(score, t), -top.top);
          float dot = 0, dv[V] = {};
          ATTN_UNROLL
          for (int j = 0; j < V; ++j) {
            if (!has) continue;
            sum[j] = top.add(sum[j], seam::to_float(d[i].x[j]));
            if (weight == 0) continue;
            dv[j] = weight * sum[j];
            dot += sum[j] * seam::to_float(v[i].x[j]);
          }
          if (has) store_channels(dv_row + t * g.dv.token, dv);
          dot = lane_sum(dot) - (column == 0 ? c : 0);
          if (seam::lane() == t && weight != 0) mine = weight * dot;
        }
      }
      ATTN_UNROLL
      for (int i = 0; i < kHalves; ++i) dscore[i] += i == half ? mine : 0;
    }
  }
};

}  // namespace attn::cuda
