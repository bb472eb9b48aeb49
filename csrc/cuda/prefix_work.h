// What the kernels of prefix-softmax pooling share: arguments and scratch memory. Tokens are cut into chunks, each of
// which adds a row and a number, times e^-top so that nothing overflows: forward the sums of e^s v and e^s; backward,
// with -lse in place of s, those of e^-lse dout and e^-lse (dout . out - dlse). What the chunks before (after) a chunk
// add up to is known before its own tokens are walked.
#pragma once

#include "attn/scan.h"
#include "cuda/scan_chunks.h"
#include "cuda/scratch.h"
#include "cuda/wide_rows.h"

namespace attn::cuda {

constexpr int64_t kPrefixChunk = 64;  // tokens: a chunk's sums are a 32nd of its values, in 16 bits

struct PrefixWork {
  PrefixPoolParams p;
  ScanChunks chunks;
  bool wide;      // rows can be read and written 16 bytes at a time
  float* sums;    // [slots, H, dim + 1]: of a chunk, then of those before (after) it
  float* top;     // [slots, H]; -inf: of nothing
  float* before;  // [slots, H]: of the chunks before (after)
};

struct PrefixGradWork {
  PrefixWork f;
  View4 dout, dv;
  const float* dlse;
  void* dscore;
  float* own;  // [B, H, T]: dout . out - dlse
};

// Do all rows of [B, H, T, dim] lie on 16 bytes?
inline bool wide_heads(DType type, int64_t dim, std::initializer_list<View4> views) {
  bool wide = true;
  for (const View4& v : views)
    wide = wide && wide_rows(type, dim, {{v.data, v.batch, v.token}, {v.data, v.head, v.token}});
  return wide;
}

inline PrefixWork prefix_work(const PrefixPoolParams& p, ScratchPieces& pieces) {
  PrefixWork w{};
  w.p = p;
  w.chunks = {p.cu, p.sequences, p.tokens, kPrefixChunk};
  w.wide = wide_heads(p.dtype, p.dim, {p.v, p.out});
  const int64_t places = w.chunks.slots() * p.heads;
  w.sums = pieces.take(places * (p.dim + 1));
  w.top = pieces.take(places);
  w.before = pieces.take(places);
  return w;
}
inline int64_t prefix_pool_scratch(const PrefixPoolParams& p) {
  ScratchPieces counted;
  prefix_work(p, counted);
  return counted.used();
}

inline PrefixGradWork prefix_grad_work(const PrefixPoolBackwardParams& b, ScratchPieces& pieces) {
  const PrefixPoolParams& p = b.forward;
  PrefixGradWork w{};
  w.f = prefix_work(p, pieces);
  w.f.wide = wide_heads(p.dtype, p.dim, {p.v, b.dout, b.dv});
  w.dout = b.dout;
  w.dv = b.dv;
  w.dlse = static_cast<const float*>(b.dlse);
  w.dscore = b.dscore;
  w.own = pieces.take(p.batch * p.heads * p.tokens);
  return w;
}
inline int64_t prefix_pool_backward_scratch(const PrefixPoolBackwardParams& b) {
  ScratchPieces counted;
  prefix_grad_work(b, counted);
  return counted.used();
}

}  // namespace attn::cuda
