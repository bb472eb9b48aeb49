// What PoNet's kernels share: the arguments of a call and what is kept in scratch memory between passes, per tile of
// tokens.
#pragma once

#include "attn/segment_cut.h"
#include "cuda/scratch.h"
#include "cuda/token_tiles.h"
#include "cuda/wide_rows.h"

namespace attn::cuda {

constexpr int kPonetTokens = 32;  // of a tile; a lane each in the pass over keys
using PonetTiles = TokenTiles<kPonetTokens>;

// Can any segment be longer than a tile?
ATTN_HD bool ponet_may_split(const PonetParams& p) {
  return p.ids || p.segment_length == 0 || p.segment_length > kPonetTokens;
}

struct PonetWork {
  PonetParams p;
  bool wide, wide_heads;  // rows of 16 bytes (vectors.h), those of a head too
  float* sum;             // [tiles, C]: of queries, then of weighted keys
  float* kept;            // [tiles]: tokens in `sum` of queries
  float* state;           // [tiles, H, 2]: maximum of the logits in base 2, sum of weights
  float* maximum;         // [2 tiles, C]: of runs that aren't whole segments, then of their segments
};

inline PonetWork ponet_work(const PonetParams& p, ScratchPieces& scratch) {
  PonetWork w{};
  w.p = p;
  w.wide = wide_rows(p.dtype, p.channels, {p.q, p.k, p.o, p.segment, p.local});
  w.wide_heads = w.wide && p.channels / p.heads * bytes_of(p.dtype) % 16 == 0;
  const int64_t tiles = PonetTiles::count(p.sequences);
  w.sum = scratch.take(tiles * p.channels);
  w.kept = scratch.take(tiles);
  w.state = scratch.take(tiles * p.heads * 2);
  w.maximum = scratch.take(ponet_may_split(p) ? 2 * tiles * p.channels : 0);
  return w;
}

inline int64_t ponet_forward_scratch(const PonetParams& p) {
  ScratchPieces counted;
  ponet_work(p, counted);
  return counted.used();
}

}  // namespace attn::cuda
