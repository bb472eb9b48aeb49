// Blocks find their sequence by a binary search: the host knows only the totals of a packed batch.
#pragma once

#include "attn/types.h"

namespace attn::cuda {

// A token inside [0, tokens], whatever a bound says: on a GPU nobody has looked at it.
ATTN_HD int64_t token_inside(int64_t at, int64_t tokens) { return at < 0 ? 0 : at < tokens ? at : tokens; }

// The last sequence whose first place, first(s), isn't after `place`.
template <class First> ATTN_HD int64_t sequence_of_place(int64_t sequences, int64_t place, First&& first) {
  int64_t s = 0, end = sequences;
  while (end - s > 1) {
    const int64_t mid = (s + end) / 2;
    if (first(mid) <= place) s = mid;
    else end = mid;
  }
  return s;
}

}  // namespace attn::cuda
