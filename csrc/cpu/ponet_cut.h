// How PoNet's forward and backward cut a sequence: chunks whose ends are moved to the end of a segment unless the
// segment is longer than a chunk. So a segment's maximum is found where it is used, in one pass; only segments longer
// than a chunk need their maximum beforehand, put together from parts.
#pragma once

#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

class PonetCut {
 public:
  explicit PonetCut(const PonetParams& p) : p_(p), chunks_(p.sequences, chunk_tokens(p.channels)) {}

  int64_t count() const { return chunks_.count(); }
  int64_t first(int64_t sequence) const { return chunks_.first(sequence); }

  Chunk at(int64_t index) const {
    Chunk c = chunks_.at(index);
    const SegmentRule rule = segment_rule(p_, c.span);
    c.begin = moved(rule, c.begin);
    c.end = moved(rule, c.end);
    return c;
  }

  // Tokens of a chunk at most.
  int64_t tokens() const { return 2 * chunks_.tokens(); }

  // A run: the tokens of a chunk that share a segment.
  struct Run {
    int64_t begin, end;                  // clipped to the chunk
    int64_t segment_begin, segment_end;  // not clipped
    bool whole() const { return begin == segment_begin && end == segment_end; }
  };

  // Calls f(run) for the chunk's runs in order.
  template <class F> void for_runs(const Chunk& c, F&& f) const {
    const SegmentRule rule = segment_rule(p_, c.span);
    for (int64_t t = c.begin; t < c.end;) {
      Run run{t, 0, t == c.begin ? rule.begin(t) : t, rule.end(t)};
      run.end = run.segment_end < c.end ? run.segment_end : c.end;
      f(run);
      t = run.end;
    }
  }

  // Can any segment be longer than a chunk?
  bool may_split() const { return p_.ids || p_.segment_length == 0 || p_.segment_length > chunks_.tokens(); }

  // Runs that aren't whole segments have a slot each: two a chunk, one for the run at its start, one for that at its
  // end. A split segment's results are gathered in the slot of its first run.
  int64_t slot(const Chunk& c, const Run& run) const { return 2 * c.index + (run.begin != c.begin); }
  int64_t home(const Chunk& c, const Run& run) const {
    const int64_t home = c.first + run.segment_begin / chunks_.tokens();
    return 2 * home + (run.segment_begin != at(home).begin);
  }
  // The segment's runs are those of chunks home, home + 1, ..., last, all but the first at the start of their chunk.
  int64_t last_chunk(const Chunk& c, const Run& run) const {
    return c.first + (run.segment_end - 1) / chunks_.tokens();
  }

 private:
  // A cut between chunks, moved to the end of the segment it would divide.
  int64_t moved(const SegmentRule& rule, int64_t cut) const {
    if (cut == 0 || cut >= rule.tokens) return cut;
    const int64_t begin = rule.begin(cut), end = rule.end(cut);
    return begin == cut || end - begin > chunks_.tokens() ? cut : end;
  }

  const PonetParams& p_;
  Chunks chunks_;
};

}  // namespace pool
ATTN_NAMESPACE_END
