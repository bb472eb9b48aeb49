// Tiles of consecutive tokens that never cross a sequence and are counted from its start, so that a sequence's result
// doesn't depend on its neighbours. Packed sequences are found on the device (places.h).
#pragma once

#include "attn/pool.h"
#include "cuda/places.h"

namespace attn::cuda {

// Sequence `index` inside the tensors, whatever cu_seqlens says: on a GPU nobody has looked at it. The one after the
// last are the tokens of a packed batch that belong to none.
ATTN_HD SequenceSpan span_inside(const Sequences& s, int64_t index) {
  if (!s.cu) return {index, 0, s.tokens};
  const auto bound = [&](int64_t i) { return token_inside(s.cu[i], s.tokens); };
  const int64_t first = bound(index), end = index < s.count ? bound(index + 1) : s.tokens;
  return {0, first, end > first ? end - first : 0};
}

struct TokenTile {
  int64_t sequence;
  SequenceSpan span;
  int32_t begin, end;    // positions within the sequence
  int64_t index, first;  // number of the tile, and of its sequence's first one
  bool outside;          // past the last sequence: results are 0
};

template <int kTokens> struct TokenTiles {
  ATTN_HD static int64_t first(const Sequences& s, int64_t sequence) {
    if (!s.cu) return sequence * ((s.tokens + kTokens - 1) / kTokens);
    return span_inside(s, sequence).first / kTokens + sequence;
  }
  ATTN_HD static int64_t tiles(const SequenceSpan& span) { return (span.length + kTokens - 1) / kTokens; }
  // Numbers of tiles are below this. There are gaps.
  ATTN_HD static int64_t count(const Sequences& s) {
    return s.cu ? s.tokens / kTokens + s.count + 1 : s.batch * ((s.tokens + kTokens - 1) / kTokens);
  }

  // False if no tokens have that number.
  ATTN_HD static bool open(const Sequences& s, int64_t index, TokenTile& tile) {
    if (index >= count(s)) return false;
    if (s.cu) {
      tile.sequence = sequence_of_place(s.count + 1, index, [&](int64_t i) { return first(s, i); });
    } else {
      tile.sequence = index / ((s.tokens + kTokens - 1) / kTokens);
    }
    tile.span = span_inside(s, tile.sequence);
    tile.outside = tile.sequence == s.count;
    tile.index = index;
    tile.first = first(s, tile.sequence);
    const int64_t begin = (index - tile.first) * kTokens, end = begin + kTokens;
    if (begin < 0 || begin >= tile.span.length) return false;
    tile.begin = static_cast<int32_t>(begin);
    tile.end = static_cast<int32_t>(end < tile.span.length ? end : tile.span.length);
    return true;
  }
};

}  // namespace attn::cuda
