// x[b, c, t] (channel[b, c] + time[b, t]) and its gradients, for every architecture. Memory-bound: the forward reads x
// and writes the result once, the backward reads x and dout and writes dx once; sums over channels cost a 32nd of that
// in 16 bits. A block takes a strip of channels by a tile of time steps: lanes have neighbouring steps, warps share
// the channels.
#pragma once

#include "cuda/axis_gate_parts.h"
#include "cuda/grid.h"
#include "cuda/smxx/row_pack.h"

namespace attn::cuda {

// Where the calling warp works.
template <class T> struct GatePlace {
  int64_t batch, strip, tile, first, end;  // channels [first, end)
  int64_t step;                            // the lane's first time step

  static Grid grid(const AxisGateParams& p) { return {p.batch * gate_strips(p) * gate_tiles(p)}; }
  ATTN_DEVICE static GatePlace mine(const AxisGateParams& p) {
    const int64_t strips = gate_strips(p), tiles = gate_tiles(p), block = seam::block_x();
    GatePlace w{block / tiles / strips, block / tiles % strips, block % tiles, 0, 0, 0};
    w.first = w.strip * kGateStrip + seam::warp() * kGateRows;
    w.end = w.first + kGateRows < p.channels ? w.first + kGateRows : p.channels;
    w.step = w.tile * 32 * kWide<T> + seam::lane() * kWide<T>;
    return w;
  }
  ATTN_DEVICE const T* row(const TokenView& x, int64_t channel) const {
    return static_cast<const T*>(x.data) + batch * x.batch + channel * x.token;
  }
  ATTN_DEVICE float channel_gate(const AxisGateParams& p, int64_t channel) const {
    return seam::to_float(static_cast<const T*>(p.channel_gate)[batch * p.channels + channel]);
  }
  ATTN_DEVICE void time_gate(const AxisGateParams& p, float (&gate)[kWide<T>]) const {
    const bool whole = packs_whole<T>(p.time_gate, p.time, 0, p.time);
    load_pack(static_cast<const T*>(p.time_gate) + batch * p.time, step, p.time, whole, gate);
  }
};

template <class T> struct AxisGateForward {
  static constexpr int kThreads = 32 * kGateWarps;
  using Params = AxisGateParams;
  struct Shared {};
  static Grid grid(const Params& p) { return GatePlace<T>::grid(p); }

  ATTN_DEVICE static void run(const Params& p, Shared&) {
    const auto w = GatePlace<T>::mine(p);
    const bool whole = packs_whole<T>(p.x.data, p.x.batch, p.x.token, p.time);
    const bool whole_out = packs_whole<T>(p.out, p.time, 0, p.time);
    float time[kWide<T>];
    w.time_gate(p, time);
    for (int64_t c = w.first; c < w.end; ++c) {
      float x[kWide<T>];
      load_pack(w.row(p.x, c), w.step, p.time, whole, x);
      const float gate = w.channel_gate(p, c);
      ATTN_UNROLL
      for (int j = 0; j < kWide<T>; ++j) x[j] *= time[j] + gate;
      store_pack(static_cast<T*>(p.out) + (w.batch * p.channels + c) * p.time, w.step, p.time, whole_out, x);
    }
  }
};

// dx, and what the block has of the other two sums.
template <class T> struct AxisGateBackward {
  static constexpr int kThreads = 32 * kGateWarps;
  using Params = AxisGateSumsParams;
  struct Shared { float time[kGateWarps][32 * kWide<T>]; };
  static Grid grid(const Params& s) { return GatePlace<T>::grid(s.backward.forward); }

  ATTN_DEVICE static void run(const Params& s, Shared& shared) {
    const AxisGateBackwardParams& b = s.backward;
    const AxisGateParams& p = b.forward;
    const auto w = GatePlace<T>::mine(p);
    const bool whole = packs_whole<T>(p.x.data, p.x.batch, p.x.token, p.time);
    const bool whole_dout = packs_whole<T>(b.dout.data, b.dout.batch, b.dout.token, p.time);
    const bool whole_dx = packs_whole<T>(b.dx, p.time, 0, p.time);
    float time[kWide<T>], dtime[kWide<T>] = {};
    w.time_gate(p, time);
    for (int64_t c = w.first; c < w.end; ++c) {
      const int64_t row = w.batch * p.channels + c;
      const float gate = w.channel_gate(p, c);
      float x[kWide<T>], g[kWide<T>], dchannel = 0;
      load_pack(w.row(p.x, c), w.step, p.time, whole, x);
      load_pack(w.row(b.dout, c), w.step, p.time, whole_dout, g);
      ATTN_UNROLL
      for (int j = 0; j < kWide<T>; ++j) {
        dtime[j] += x[j] * g[j];
        dchannel += x[j] * g[j];
        g[j] *= time[j] + gate;
      }
      if (b.dx) store_pack(static_cast<T*>(b.dx) + row * p.time, w.step, p.time, whole_dx, g);
      for (int step = 16; step > 0; step /= 2) dchannel += seam::shuffle_xor(dchannel, step);
      if (seam::lane() == 0) s.channel[w.tile * p.batch * p.channels + row] = dchannel;
    }
    ATTN_UNROLL
    for (int j = 0; j < kWide<T>; ++j) shared.time[seam::warp()][seam::lane() * kWide<T> + j] = dtime[j];
    seam::sync_block();
    const int64_t first = w.tile * 32 * kWide<T>;
    for (int64_t i = seam::thread(); i < 32 * kWide<T> && first + i < p.time; i += kThreads) {
      float sum = shared.time[0][i];
      ATTN_UNROLL
      for (int n = 1; n < kGateWarps; ++n) sum += shared.time[n][i];
      s.time[(w.strip * p.batch + w.batch) * p.time + first + i] = sum;
    }
  }
};

// Adds up the sums of blocks: a thread takes a channel or a time step of a batch entry.
template <class T> struct AxisGateSums {
  static constexpr int kThreads = 256;
  using Params = AxisGateSumsParams;
  struct Shared {};
  ATTN_HD static int64_t channels(const Params& s) {
    return s.backward.dchannel ? s.backward.forward.batch * s.backward.forward.channels : 0;
  }
  ATTN_HD static int64_t steps(const Params& s) {
    return s.backward.dtime ? s.backward.forward.batch * s.backward.forward.time : 0;
  }
  static Grid grid(const Params& s) { return {(channels(s) + steps(s) + kThreads - 1) / kThreads}; }

  ATTN_DEVICE static void run(const Params& s, Shared&) {
    const AxisGateParams& p = s.backward.forward;
    const int64_t i = static_cast<int64_t>(seam::block_x()) * kThreads + seam::thread(), n = channels(s);
    if (i >= n + steps(s)) return;
    const bool of_channel = i < n;
    const int64_t at = of_channel ? i : i - n, stride = p.batch * (of_channel ? p.channels : p.time);
    const int64_t parts = of_channel ? gate_tiles(p) : gate_strips(p);
    const float* from = (of_channel ? s.channel : s.time) + at;
    float sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += from[part * stride];
    static_cast<T*>(of_channel ? s.backward.dchannel : s.backward.dtime)[at] = seam::from_float<T>(sum);
  }
};

}  // namespace attn::cuda
