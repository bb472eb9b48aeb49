// How the gradient of the axis gate is cut: a block takes kGateStrip channels by a tile of time steps of a batch entry.
// Its sums over the time steps and over the channels go to scratch memory and are added up in order afterwards, so the
// bits of a result follow from the entry's own sizes.
#pragma once

#include "attn/pool.h"

namespace attn::cuda {

constexpr int kGateWarps = 4;
constexpr int64_t kGateRows = 16;  // channels of a warp, one after another
constexpr int64_t kGateStrip = kGateWarps * kGateRows;

// Time steps of a warp: 16 bytes a lane.
ATTN_HD int64_t gate_tile(DType type) { return type == DType::f32 ? 128 : 256; }
ATTN_HD int64_t gate_tiles(const AxisGateParams& p) { return (p.time + gate_tile(p.dtype) - 1) / gate_tile(p.dtype); }
ATTN_HD int64_t gate_strips(const AxisGateParams& p) { return (p.channels + kGateStrip - 1) / kGateStrip; }

struct AxisGateSumsParams {
  AxisGateBackwardParams backward;
  float* channel;  // [tiles, B, C]
  float* time;     // [strips, B, T]
};

inline int64_t axis_gate_scratch(const AxisGateBackwardParams& b) {
  const AxisGateParams& p = b.forward;
  return p.batch * (gate_tiles(p) * p.channels + gate_strips(p) * p.time);
}

inline AxisGateSumsParams axis_gate_sums(const AxisGateBackwardParams& b, float* scratch) {
  const AxisGateParams& p = b.forward;
  return {b, scratch, scratch + gate_tiles(p) * p.batch * p.channels};
}

}  // namespace attn::cuda
