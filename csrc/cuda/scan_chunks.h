// How the tokens of a scan are cut into chunks that blocks take side by side, and where the state of each is kept. Cuts
// follow from a sequence's own length, never from the rest of the batch, so neither do the bits of a result. Nobody has
// looked at packed bounds before: whatever they hold, chunks lie within the tensors and slots within their number.
#pragma once

#include "cuda/places.h"

namespace attn::cuda {

struct ScanChunks {
  const int32_t* cu;          // null, or [sequences + 1]: packed sequences
  int64_t sequences, tokens;  // tokens: of each sequence without cu, of all with it
  int64_t length;             // of a chunk

  struct Range { int64_t begin, end; };
  struct Place { int64_t sequence, chunk; };

  ATTN_HD int64_t bound(int64_t s) const { return token_inside(cu[s], tokens); }
  // Tokens of a sequence; without cu, of its batch entry.
  ATTN_HD Range sequence(int64_t s) const {
    if (!cu) return {0, tokens};
    const int64_t begin = bound(s), end = bound(s + 1);
    return {begin, end < begin ? begin : end};
  }
  ATTN_HD int64_t chunks(int64_t s) const {
    const Range r = sequence(s);
    return (r.end - r.begin + length - 1) / length;
  }

  // Chunk i of sequence s has slot first_slot(s) + i. A sequence that begins at token a has no use for more than one
  // slot beyond the a / length that tokens before it leave, so no sum over the sequences before is needed.
  ATTN_HD int64_t first_slot(int64_t s) const {
    return cu ? bound(s) / length + s : s * ((tokens + length - 1) / length);
  }
  ATTN_HD int64_t slots() const {
    if (sequences == 0) return 0;  // tokens of a packed batch without a sequence are nobody's
    return cu ? tokens / length + sequences : sequences * ((tokens + length - 1) / length);
  }
  // Whose slot it is; chunk < 0 or past chunks(sequence) if nobody's.
  ATTN_HD Place find(int64_t slot) const {
    if (!cu) {
      const int64_t each = (tokens + length - 1) / length;
      return {slot / each, slot % each};
    }
    const int64_t s = sequence_of_place(sequences, slot, [&](int64_t i) { return first_slot(i); });
    return {s, slot - first_slot(s)};
  }
};

}  // namespace attn::cuda
