// How linear attention is cut into segments, and its scratch memory.
#pragma once

#include "attn/scan.h"
#include "cuda/scan_chunks.h"
#include "cuda/scratch.h"

namespace attn::cuda {

// Segments are long enough for the memory of their states to be a share of the tokens' own, whatever the widths.
inline ScanChunks linear_chunks(const LinearParams& p, int64_t tokens) {
  return {p.cu, p.sequences, tokens, segment_tokens(feature_count(p.map, p.dim) * p.dim_v, 2 * p.dim + p.dim_v)};
}

// States of all segments, of queries or of keys.
struct LinearStates {
  float *s, *z;  // [slots, Hkv, F, Dv], [slots, Hkv, F]

  LinearStates(const LinearParams& p, ScratchPieces& pieces) {
    const int64_t n = linear_chunks(p, p.tq > p.tk ? p.tq : p.tk).slots() * p.heads_kv;
    const int64_t features = feature_count(p.map, p.dim);
    s = pieces.take(n * features * p.dim_v);
    z = pieces.take(n * features);
  }
};
inline int64_t linear_scratch(const LinearParams& p) {
  ScratchPieces counted;
  LinearStates(p, counted);
  return counted.used();
}

struct LinearBackwardScratch {
  LinearStates states;
  float *factor = nullptr, *mass_term = nullptr;  // what LinearDelta gives, if normalised
  float *s = nullptr, *z = nullptr;               // sums over all rows, if every key needs them and nobody wants them

  LinearBackwardScratch(const LinearBackwardParams& b, ScratchPieces& pieces) : states(b.forward, pieces) {
    const LinearParams& p = b.forward;
    if (p.normalize) {
      factor = pieces.take(p.batch * p.heads * p.tq);
      mass_term = pieces.take(p.batch * p.heads * p.tq);
    }
    if (p.causal || b.ds0) return;
    const int64_t n = p.sequences * p.heads_kv * feature_count(p.map, p.dim);
    s = pieces.take(n * p.dim_v);
    z = pieces.take(n);
  }
};
inline int64_t linear_backward_scratch(const LinearBackwardParams& b) {
  ScratchPieces counted;
  LinearBackwardScratch(b, counted);
  return counted.used();
}

}  // namespace attn::cuda
