// How the tokens of a sequence are cut into chunks where segments matter: a cut that would divide a segment no longer
// than a chunk is moved to its end, so that such a segment's maximum is found where it is used. Only longer ones need
// theirs beforehand, put together from parts.
#pragma once

#include "attn/pool.h"

ATTN_NAMESPACE_BEGIN

// The tokens of a chunk that share a segment.
struct SegmentRun {
  int64_t begin, end;                  // clipped to the chunk
  int64_t segment_begin, segment_end;  // not clipped
  ATTN_HD bool whole() const { return begin == segment_begin && end == segment_end; }
};

struct SegmentCut {
  SegmentRule rule;
  int64_t tokens;  // of a chunk, before cuts are moved; at most twice as many after

  ATTN_HD int64_t moved(int64_t cut) const {
    if (cut == 0 || cut >= rule.tokens) return cut;
    const int64_t begin = rule.begin(cut), end = rule.end(cut);
    return begin == cut || end - begin > tokens ? cut : end;
  }

  // End of the segment that begins at `at`. Without a division, which costs a GPU more than a row does, and near `at`.
  ATTN_HD int64_t end_from(int64_t at) const {
    if (!rule.ids) {
      if (rule.segment_length == 0 || rule.segment_length > rule.tokens - at) return rule.tokens;
      return at + rule.segment_length;
    }
    int64_t lo = at + 1, step = 1;  // all before `lo` are in it
    while (at + step < rule.tokens && rule.ids[at + step] <= rule.ids[at]) {
      lo = at + step + 1;
      step *= 2;
    }
    int64_t hi = at + step < rule.tokens ? at + step : rule.tokens;
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (rule.ids[mid] <= rule.ids[at]) lo = mid + 1;
      else hi = mid;
    }
    return lo;
  }

  // Calls f(run) for the runs of chunk [begin, end) in order.
  template <class F> ATTN_HD void for_runs(int64_t begin, int64_t end, F&& f) const {
    for (int64_t t = begin; t < end;) {
      const int64_t from = t == begin ? rule.begin(t) : t;
      SegmentRun run{t, 0, from, from == t ? end_from(t) : rule.end(t)};
      run.end = run.segment_end < end ? run.segment_end : end;
      f(run);
      t = run.end;
    }
  }

  // Runs that aren't whole segments have a slot each: two a chunk, one for the run at its start, one for that at its
  // end. A split segment's results are gathered in the slot of its first run, which is in chunk `home`; its others are
  // at the start of chunks home + 1, ..., last. Chunks are counted from the sequence's.
  ATTN_HD static int64_t slot(int64_t chunk, int64_t chunk_begin, const SegmentRun& run) {
    return 2 * chunk + (run.begin != chunk_begin);
  }
  ATTN_HD int64_t home(const SegmentRun& run) const { return run.segment_begin / tokens; }
  ATTN_HD int64_t home_slot(const SegmentRun& run) const {
    return 2 * home(run) + (run.segment_begin != moved(home(run) * tokens));
  }
  ATTN_HD int64_t last(const SegmentRun& run) const { return (run.segment_end - 1) / tokens; }
};

ATTN_NAMESPACE_END
