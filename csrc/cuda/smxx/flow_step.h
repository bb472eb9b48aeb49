// One token of causal flow attention: the running sums are the whole state (attn/flow.h). A block takes a head. For
// every architecture; the state is read and written once.
#pragma once

#include "cuda/smxx/flow_chunk.h"
#include "cuda/smxx/lane_row.h"

namespace attn::cuda {

template <class T> struct FlowStep {
  static constexpr int kThreads = 256, kParts = 4, kColumns = kThreads / kParts;
  using Params = FlowStepParams;
  struct Shared {
    float sink[kFlowMaxDim], source[kFlowMaxDim];
    float dots[kThreads / 32];
    float out[kParts][kColumns];
  };
  static Grid grid(const Params& p) { return {p.batch * p.heads}; }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    const int64_t g = seam::block_x(), batch = g / p.heads, head = g % p.heads;
    const int64_t head_kv = head / (p.heads / p.heads_kv), d = p.dim;
    const auto row = [&](const View4& x, int64_t h) {
      return static_cast<const T*>(x.data) + batch * x.batch + h * x.head;
    };
    const bool first = !p.before.sums;
    const float t = first ? 1 : static_cast<const float*>(p.before.tokens)[batch] + 1;
    const int i = seam::thread();
    if (i < d) {
      shared.sink[i] = flow_sigmoid(seam::to_float(row(p.q, head)[i]));
      shared.source[i] = flow_sigmoid(seam::to_float(row(p.k, head_kv)[i]));
    }
    const float* old = first ? nullptr : static_cast<const float*>(p.before.sums) + g * 4 * d;
    float* sums = static_cast<float*>(p.after.sums) + g * 4 * d;
    // Advances sum `which` by weight x; its product with y, both with eps.
    const auto advance = [&](int which, const float* x, float weight, const float* y) {
      float dot = 0;
      if (i < d) {
        const float sum = (old ? old[which * d + i] : 0) + weight * x[i], eps = static_cast<float>(p.eps);
        sums[which * d + i] = sum;
        dot = (sum + eps) * (y[i] + eps);
      }
      return block_sum(shared, dot);
    };
    const float incoming = advance(0, shared.source, 1, shared.sink);
    const float outgoing = advance(1, shared.sink, 1, shared.source);
    const float to_sink = advance(2, shared.source, t / outgoing, shared.sink) / t;
    const float to_source = advance(3, shared.sink, t / incoming, shared.source) / t;

    const float flow = cut_flow(to_source, static_cast<float>(p.clamp));
    const float before = first ? 0 : static_cast<const float*>(p.before.log_mean)[g];
    const float top = first || flow > before ? flow : before;
    const float mean = ((t - 1) * std::exp(before - top) + std::exp(flow - top)) / t;
    const float log_mean = first ? flow : top + std::log(mean);
    if (i == 0) {
      static_cast<float*>(p.after.log_mean)[g] = log_mean;
      if (head == 0) static_cast<float*>(p.after.tokens)[batch] = t;
    }
    write_row(p, shared, g, std::exp(flow - log_mean), flow_sigmoid(to_sink) / incoming);
  }

  // The sum over threads, in a fixed order, for all of them.
  ATTN_DEVICE static float block_sum(Shared& shared, float x) {
    x = lane_sum(x);
    if (seam::lane() == 0) shared.dots[seam::warp()] = x;
    seam::sync_block();
    x = 0;
    for (int i = 0; i < kThreads / 32; ++i) x += shared.dots[i];
    seam::sync_block();
    return x;
  }

  // product += source (x) weight v; out = factor sink . product. Four parts of the rows, each a quarter of the threads.
  ATTN_DEVICE static void write_row(const Params& p, Shared& shared, int64_t g, float weight, float factor) {
    const int64_t batch = g / p.heads, head = g % p.heads, head_kv = head / (p.heads / p.heads_kv);
    const int part = seam::thread() / kColumns, lane = seam::thread() % kColumns;
    const T* v = static_cast<const T*>(p.v.data) + batch * p.v.batch + head_kv * p.v.head;
    T* out = static_cast<T*>(p.out.data) + batch * p.out.batch + head * p.out.head;
    const float* before = p.before.sums ? static_cast<const float*>(p.before.product) + g * p.dim * p.dim_v : nullptr;
    float* after = static_cast<float*>(p.after.product) + g * p.dim * p.dim_v;
    for (int64_t column = 0; column < p.dim_v; column += kColumns) {
      const int64_t x = column + lane;
      float sum = 0;
      if (x < p.dim_v) {
        const float value = weight * seam::to_float(v[x]);
        for (int64_t f = part; f < p.dim; f += kParts) {
          const float now = (before ? before[f * p.dim_v + x] : 0) + shared.source[f] * value;
          after[f * p.dim_v + x] = now;
          sum += shared.sink[f] * now;
        }
      }
      shared.out[part][lane] = sum;
      seam::sync_block();
      if (part == 0 && x < p.dim_v) {
        for (int i = 1; i < kParts; ++i) sum += shared.out[i][lane];
        out[x] = seam::from_float<T>(factor * sum);
      }
      seam::sync_block();
    }
  }
};

}  // namespace attn::cuda
