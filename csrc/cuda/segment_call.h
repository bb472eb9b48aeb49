// Arguments of the segment pooling kernels, and how segments are cut: a segment of up to kSegmentTokens tokens is one
// part, a longer one several, whose results meet in scratch memory.
#pragma once

#include "attn/pool.h"
#include "cuda/places.h"
#include "cuda/wide_rows.h"

namespace attn::cuda {

// Ids [B, L] -> ascending ids.
struct SegmentIdsParams {
  Sequences sequences;
  IdView ids;
  MaskView mask;
  int32_t* ascending;  // [B, L] contiguous
};

struct SegmentOffsetsParams {
  int64_t batch, tokens, segments;
  const int32_t* ascending;  // [B, L] contiguous
  int32_t* offsets;          // [B, segments + 1] contiguous
};

constexpr int kSegmentTokens = 64;

// Part of a segment: tokens [begin, end) of a batch entry.
struct SegmentPart {
  int64_t batch, segment;
  int32_t begin, end;
  int64_t slot;   // of scratch memory, where the segment has several parts
  int32_t parts;  // of its segment
  bool outside;   // tokens past the last segment: their gradient is 0
};

struct SplitSegment {
  int64_t batch, segment, begin;
  int32_t parts;
};

// Parts of one call.
struct SegmentParts {
  int64_t batch, tokens, segments;
  const int32_t* offsets;  // null: each batch entry is one segment

  ATTN_HD explicit SegmentParts(const SegmentPoolParams& p)
      : batch(p.batch), tokens(p.tokens), segments(p.segments), offsets(p.offsets) {}

  // Inside the tensors, whatever the offsets say.
  ATTN_HD int64_t offset(int64_t b, int64_t s) const {
    if (!offsets) return s * tokens;
    return token_inside(offsets[b * (segments + 1) + s], tokens);
  }
  ATTN_HD int64_t end_of(int64_t b, int64_t s) const {
    const int64_t begin = offset(b, s), end = s < segments ? offset(b, s + 1) : tokens;
    return end > begin ? end : begin;
  }

  // Each segment has at least as many places as parts; so has what is past the last one.
  ATTN_HD int64_t places() const { return tokens / kSegmentTokens + segments + 1; }  // of a batch entry

  ATTN_HD bool open(int64_t index, SegmentPart& part) const {
    part.batch = index / places();
    if (part.batch >= batch) return false;
    const int64_t place = index - part.batch * places();
    const auto first = [&](int64_t s) { return offset(part.batch, s) / kSegmentTokens + s; };
    part.segment = sequence_of_place(segments + 1, place, first);
    part.outside = part.segment == segments;
    const int64_t number = place - first(part.segment);
    const int64_t from = offset(part.batch, part.segment), to = end_of(part.batch, part.segment);
    const int64_t begin = from + number * kSegmentTokens, end = begin + kSegmentTokens;
    if (number < 0 || (number > 0 && begin >= to)) return false;
    part.begin = static_cast<int32_t>(begin);
    part.end = static_cast<int32_t>(end < to ? end : to);
    part.parts = parts_of(to - from);
    part.slot = slot(part.batch, from, number);
    return true;
  }

  ATTN_HD static int32_t parts_of(int64_t length) {
    return static_cast<int32_t>(length > kSegmentTokens ? (length + kSegmentTokens - 1) / kSegmentTokens : 1);
  }

  // Of every kSegmentTokens tokens, at most one part that starts a segment in several parts begins there, and at most
  // one that continues one.
  ATTN_HD int64_t windows() const { return tokens / kSegmentTokens + 1; }  // of a batch entry
  ATTN_HD int64_t slot(int64_t b, int64_t from, int64_t number) const {
    return 2 * (b * windows() + from / kSegmentTokens + number) + (number == 0);
  }
  // The segment in several parts that starts in window `index` of all batch entries'; false if there is none.
  ATTN_HD bool open_split(int64_t index, SplitSegment& split) const {
    const int64_t b = index / windows(), window = index - b * windows();
    if (segments == 0) return false;
    const auto first = [&](int64_t s) { return offset(b, s) / kSegmentTokens; };
    const int64_t s = sequence_of_place(segments, window, first), length = end_of(b, s) - offset(b, s);
    split = {b, s, offset(b, s), parts_of(length)};
    return first(s) == window && length > kSegmentTokens;
  }

  // No segment can be that long?
  ATTN_HD bool whole() const { return tokens <= kSegmentTokens; }
  ATTN_HD int64_t slots() const { return whole() ? 0 : 2 * batch * windows(); }
};

struct SegmentForwardParams {
  SegmentPoolParams p;
  bool wide;      // rows of 16 bytes (vectors.h)
  float* part;    // [slots, C]: what a part reduces to
  int32_t* kept;  // [slots]: its kept tokens
};

struct SegmentBackwardParams {
  SegmentPoolBackwardParams b;
  bool wide;
  float *maximum, *share;  // [slots, C]: the segment's maximum, what each of the part's tokens that has it gets
  int32_t* kept;           // [slots]
};

// Floats of scratch memory.
inline int64_t segment_pool_forward_scratch(const SegmentPoolParams& p) {
  return SegmentParts(p).slots() * (p.channels + 1);
}
inline int64_t segment_pool_backward_scratch(const SegmentPoolBackwardParams& b) {
  return SegmentParts(b.forward).slots() * (2 * b.forward.channels + 1);
}

inline SegmentForwardParams segment_forward_params(const SegmentPoolParams& p, float* scratch) {
  const int64_t rows = SegmentParts(p).slots() * p.channels;
  return {p, wide_rows(p.dtype, p.channels, {p.x}), scratch, reinterpret_cast<int32_t*>(scratch + rows)};
}
inline SegmentBackwardParams segment_backward_params(const SegmentPoolBackwardParams& b, float* scratch) {
  const SegmentPoolParams& p = b.forward;
  const int64_t rows = SegmentParts(p).slots() * p.channels;
  return {b, wide_rows(p.dtype, p.channels, {p.x, b.dout}), scratch, scratch + rows,
          reinterpret_cast<int32_t*>(scratch + 2 * rows)};
}

}  // namespace attn::cuda
