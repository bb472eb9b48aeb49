// Blocks find their sequence by a binary search: the host knows only the totals of a packed batch.
#pragma once

#include "attn/types.h"

namespace attn::cuda {

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
