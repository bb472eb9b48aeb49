// A chunk of a scan (scan_chunks.h) as a block takes it.
#pragma once

#include "cuda/scan_chunks.h"

namespace attn::cuda {

struct ScanSegment {
  int64_t batch, token;  // where the sequence starts
  int64_t sequence, slot;
  int64_t begin, end;  // tokens of the sequence
};

// False if the slot has no tokens.
ATTN_HD bool open_segment(const ScanChunks& chunks, int64_t slot, ScanSegment& x) {
  const ScanChunks::Place place = chunks.find(slot);
  const ScanChunks::Range all = chunks.sequence(place.sequence);
  const int64_t count = all.end - all.begin, begin = place.chunk * chunks.length, end = begin + chunks.length;
  x = {chunks.cu ? 0 : place.sequence, all.begin, place.sequence, slot, begin, end < count ? end : count};
  return begin >= 0 && begin < x.end;
}

}  // namespace attn::cuda
