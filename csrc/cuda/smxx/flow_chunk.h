// Where a block of a flow attention kernel works: a chunk of a head's kept tokens.
#pragma once

#include "cuda/flow_work.h"
#include "cuda/grid.h"
#include "cuda/seam.h"

namespace attn::cuda {

// The kept tokens of one sequence.
struct FlowTokens {
  int64_t batch, first, count;
  const int32_t* index;  // null: token i is first + i

  ATTN_DEVICE int64_t at(int64_t i) const { return index ? index[i] : first + i; }
};

// Tokens of a sequence before any mask; tokens: of a batch entry.
ATTN_DEVICE FlowTokens flow_all_tokens(const FlowWork& w, int64_t s, int64_t tokens) {
  if (!w.p.cu) return {s, 0, tokens, nullptr};
  const ScanChunks::Range r = w.chunks.sequence(s);
  return {0, r.begin, r.end - r.begin, nullptr};
}
ATTN_DEVICE FlowTokens flow_kept(FlowTokens t, int64_t s, int64_t tokens, const int32_t* index, const int32_t* count) {
  if (!index) return t;
  t.count = count[s];
  t.index = index + t.batch * tokens + t.first;
  return t;
}
ATTN_DEVICE FlowTokens flow_sinks(const FlowWork& w, int64_t s) {
  return flow_kept(flow_all_tokens(w, s, w.p.tq), s, w.p.tq, w.q_index, w.q_count);
}
ATTN_DEVICE FlowTokens flow_sources(const FlowWork& w, int64_t s) {
  return flow_kept(flow_all_tokens(w, s, w.p.tk), s, w.p.tk, w.k_index, w.k_count);
}

// Block (x, y) has the chunk in slot x / parts of head y.
inline Grid flow_grid(const FlowWork& w, int64_t parts = 1, int64_t tiles = 1) {
  return {w.chunks.slots() * parts, w.p.heads, tiles};
}

struct FlowChunk {
  int64_t slot, sequence, chunk, head;
  FlowTokens sinks, sources;
  int64_t begin;  // of the chunk among kept tokens

  // False where the slot is nobody's.
  ATTN_DEVICE bool open(const FlowWork& w, int64_t at_slot) {
    slot = at_slot;
    const ScanChunks::Place place = w.chunks.find(slot);
    if (place.chunk < 0 || place.chunk >= w.chunks.chunks(place.sequence)) return false;
    sequence = place.sequence;
    chunk = place.chunk;
    head = seam::block_y();
    sinks = flow_sinks(w, sequence);
    sources = flow_sources(w, sequence);
    begin = chunk * kFlowChunk;
    return true;
  }

  ATTN_DEVICE static int64_t in_chunk(const FlowTokens& t, int64_t begin) {
    const int64_t n = t.count - begin;
    return n < 0 ? 0 : n < kFlowChunk ? n : kFlowChunk;
  }
  ATTN_DEVICE int64_t sink_count() const { return in_chunk(sinks, begin); }
  ATTN_DEVICE int64_t source_count() const { return in_chunk(sources, begin); }

  ATTN_DEVICE int64_t place(const FlowWork& w) const { return slot * w.p.heads + head; }
  ATTN_DEVICE int64_t group(const FlowWork& w) const { return sequence * w.p.heads + head; }
  ATTN_DEVICE int64_t head_kv(const FlowWork& w) const { return head / (w.p.heads / w.p.heads_kv); }

  // Statistics of the sequence's kept tokens: kind 0, 1 of sinks; 0, 1, 2 of sources.
  ATTN_DEVICE float* sink_stat(const FlowWork& w, int kind) const {
    return static_cast<float*>(w.p.sinks) + ((sinks.batch * w.p.heads + head) * 2 + kind) * w.p.tq + sinks.first;
  }
  ATTN_DEVICE float* source_stat(const FlowWork& w, int kind) const {
    return static_cast<float*>(w.p.sources) + ((sources.batch * w.p.heads + head) * 3 + kind) * w.p.tk + sources.first;
  }
};

// Row of kept token i.
template <class T> ATTN_DEVICE T* flow_row(const View4& x, const FlowTokens& t, int64_t head, int64_t i) {
  return static_cast<T*>(x.data) + t.batch * x.batch + head * x.head + t.at(i) * x.token;
}

ATTN_DEVICE float flow_sigmoid(float x) { return 1 / (1 + seam::exp2_fast(x * -1.44269504f)); }

// n / m of a sequence, which scales what sources pass on to sinks.
ATTN_DEVICE float flow_ratio(const FlowChunk& c) {
  return static_cast<float>(static_cast<double>(c.sinks.count) / static_cast<double>(c.sources.count));
}

// Lists the kept tokens of a sequence in order. Block y: 0 sinks, 1 sources.
struct FlowKept {
  static constexpr int kThreads = 256;
  using Params = FlowWork;
  struct Shared { int32_t count[kThreads / 32]; };

  static Grid grid(const FlowWork& w) { return {w.q_index || w.k_index ? w.p.sequences : 0, w.p.causal ? 1 : 2}; }

  ATTN_DEVICE static void run(const FlowWork& w, Shared& shared) {
    const bool of_sinks = seam::block_y() == 0;
    const int64_t s = seam::block_x(), tokens = of_sinks ? w.p.tq : w.p.tk;
    int32_t* index = of_sinks ? w.q_index : w.k_index;
    if (!index) return;
    const MaskView& mask = of_sinks ? w.p.query_mask : w.p.key_mask;
    const FlowTokens all = flow_all_tokens(w, s, tokens);
    int32_t total = 0;
    for (int64_t base = 0; base < all.count; base += kThreads) {
      const int64_t i = base + seam::thread(), t = all.first + i;
      const bool keep = i < all.count && mask.data[all.batch * mask.batch + t * mask.token] != 0;
      const uint32_t bits = seam::ballot(keep);
      if (seam::lane() == 0) shared.count[seam::warp()] = static_cast<int32_t>(seam::popcount(bits));
      seam::sync_block();
      int32_t at = total + static_cast<int32_t>(seam::popcount(bits & ((1u << seam::lane()) - 1)));
      for (int i_warp = 0; i_warp < kThreads / 32; ++i_warp) {
        if (i_warp < seam::warp()) at += shared.count[i_warp];
        total += shared.count[i_warp];
      }
      if (keep) index[all.batch * tokens + all.first + at] = static_cast<int32_t>(t);
      seam::sync_block();
    }
    if (seam::thread() == 0) (of_sinks ? w.q_count : w.k_count)[s] = total;
  }
};

}  // namespace attn::cuda
