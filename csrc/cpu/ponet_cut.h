// How PoNet's forward and backward cut a batch (attn/segment_cut.h).
#pragma once

#include "attn/segment_cut.h"
#include "cpu/chunks.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

class PonetCut {
 public:
  using Run = SegmentRun;

  explicit PonetCut(const PonetParams& p) : p_(p), chunks_(p.sequences, chunk_tokens(p.channels)) {}

  int64_t count() const { return chunks_.count(); }
  int64_t first(int64_t sequence) const { return chunks_.first(sequence); }

  Chunk at(int64_t index) const {
    Chunk c = chunks_.at(index);
    const SegmentCut rule = cut(c);
    c.begin = rule.moved(c.begin);
    c.end = rule.moved(c.end);
    return c;
  }

  // Tokens of a chunk at most.
  int64_t tokens() const { return 2 * chunks_.tokens(); }

  // Calls f(run) for the chunk's runs in order.
  template <class F> void for_runs(const Chunk& c, F&& f) const { cut(c).for_runs(c.begin, c.end, f); }

  // Can any segment be longer than a chunk?
  bool may_split() const { return p_.ids || p_.segment_length == 0 || p_.segment_length > chunks_.tokens(); }

  int64_t slot(const Chunk& c, const Run& run) const { return SegmentCut::slot(c.index, c.begin, run); }
  int64_t home(const Chunk& c, const Run& run) const { return 2 * c.first + cut(c).home_slot(run); }
  int64_t last_chunk(const Chunk& c, const Run& run) const { return c.first + cut(c).last(run); }

 private:
  SegmentCut cut(const Chunk& c) const { return {segment_rule(p_, c.span), chunks_.tokens()}; }

  const PonetParams& p_;
  Chunks chunks_;
};

}  // namespace pool
ATTN_NAMESPACE_END
