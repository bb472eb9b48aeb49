// A segment of a group's tokens, as the passes of causal flow attention see it.
#pragma once

#include "cpu/flow_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

// Tokens [begin, begin + n) of group g, with their rows in w.sinks and w.sources.
template <class In, class Scratch> struct FlowSegment {
  using A = typename FlowRows<In>::A;

  const FlowRows<In>& rows;
  Tokens tokens;
  int64_t g, begin, n;
  Scratch& w;

  A* incoming() const { return rows.incoming(tokens, g, begin); }
  A* conserved_sink() const { return rows.conserved_sink(tokens, g, begin); }
  A* outgoing() const { return rows.outgoing(tokens, g, begin); }
  A* conserved_source() const { return rows.conserved_source(tokens, g, begin); }
  A* weight() const { return rows.weight(tokens, g, begin); }
  A position(int64_t i) const { return static_cast<A>(begin + i + 1); }  // t, of which sums are means
};

// fn(s) for a segment s of group g, if it has tokens. Its rows lie in `scratch_bytes` of the thread's memory, as
// `Scratch(pass, carve)` lays them out.
template <class Scratch, class In, class Pass, class F>
void with_segment(const Pass& pass, const FlowRows<In>& rows, int64_t scratch_bytes, int64_t g, int64_t segment,
                  F&& fn) {
  Carve c{static_cast<char*>(thread_scratch(scratch_bytes))};
  Scratch w(pass, c);
  const Tokens t = rows.queries(g);
  in_segment(t.count, rows.segment, segment, [&](int64_t begin, int64_t end) {
    rows.load_sinks(t, g, begin, end - begin, w.sinks);
    rows.load_sources(t, g, begin, end - begin, w.sources);
    fn(FlowSegment<In, Scratch>{rows, t, g, begin, end - begin, w});
  });
}

}  // namespace scan
ATTN_NAMESPACE_END
