// What PoNet's backward kernels share: the arguments of a call, and what is kept between passes. With t = dy o of a
// token, csrc/cpu/ponet_grad.h has the formulas.
#pragma once

#include "cuda/ponet_work.h"

namespace attn::cuda {

struct PonetGradWork {
  PonetBackwardParams b;
  bool wide, wide_heads;  // rows of 16 bytes (vectors.h), those of a head too
  // Of runs that aren't whole segments, in slots [2 tiles, C]; what belongs to the segment is in that of its first run.
  float* maximum;     // of the run, then of the segment
  uint32_t* winners;  // the run's tokens that have it, a bit each; then those that get a share of the gradient
  float* total;       // sum of t, then what each winner gets
  float* count;       // [tiles, C]: winners of the segment longer than a tile that starts there
  float* sum;         // [tiles, C]: of t, then of da k
  float* kept;        // [tiles]: kept tokens
  float* dglobal;     // [sequences, C]
  float* dmean;       // [sequences, C]: gradient of the pooled query / kept tokens

  ATTN_HD bool wants_keys() const { return b.dk || b.dq || b.dquery; }
  ATTN_HD bool wants_tokens() const { return b.d_o || b.dsegment || wants_keys(); }
  ATTN_HD bool wants_split() const { return (b.d_o || b.dsegment) && ponet_may_split(b.forward); }
};

inline PonetGradWork ponet_grad_work(const PonetBackwardParams& b, ScratchPieces& scratch) {
  const PonetParams& p = b.forward;
  PonetGradWork w{};
  w.b = b;
  w.wide = wide_rows(p.dtype, p.channels, {p.k, p.o, p.segment, p.local, b.dout});
  w.wide_heads = w.wide && p.channels / p.heads * bytes_of(p.dtype) % 16 == 0;
  const int64_t tiles = PonetTiles::count(p.sequences), rows = tiles * p.channels;
  const int64_t slots = w.wants_split() ? 2 * rows : 0;
  w.maximum = scratch.take(slots);
  w.winners = scratch.take<uint32_t>(slots);
  w.total = scratch.take(slots);
  w.count = scratch.take(slots / 2);
  w.sum = scratch.take(rows);
  w.kept = scratch.take(tiles);
  w.dglobal = scratch.take(p.sequences.count * p.channels);
  w.dmean = scratch.take(p.sequences.count * p.channels);
  return w;
}

inline int64_t ponet_backward_scratch(const PonetBackwardParams& b) {
  ScratchPieces counted;
  ponet_grad_work(b, counted);
  return counted.used();
}

}  // namespace attn::cuda
