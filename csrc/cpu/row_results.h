// The rows of attention's result that a panel writes: straight to memory, or around the cache where the result is
// large.
#pragma once

#include "cpu/lanes.h"
#include "cpu/pack.h"
#include "cpu/row_block.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN

template <class In> struct RowResults {
  const AttendParams& p;
  const pool::RowWriter<In> writer;
  In **rows, **places;  // [width] where the panel's rows belong, and where they are put together
  In* block;            // [width][dim_v] for what is written around the cache
  int32_t count = 0;

  RowResults(const AttendParams& params, Carve& c, int width)
      : p(params),
        writer(params.batch * params.heads * params.tq * params.dim_v * int64_t{sizeof(In)} >= pool::kStreamBytes,
               nullptr, params.dim_v),
        rows(c.take<In*>(width)), places(c.take<In*>(width)), block(c.take<In>(width * params.dim_v)) {}

  // The panel's rows are [first, last) of `span`.
  void list(const RowSpan& span, const Sequence& seq, int32_t first, int32_t last) {
    count = last - first;
    span.for_heads(first, last, [&](int32_t r, int32_t n, int32_t head, int32_t query) {
      In* at = static_cast<In*>(p.out.data) + seq.batch * p.out.batch + head * p.out.head +
               (seq.q_token + query) * p.out.token;
      for (int32_t i = 0; i < n; ++i, at += p.out.token) rows[r - first + i] = at;
    });
    for (int32_t i = 0; i < count; ++i) places[i] = writer.streams() ? block + i * p.dim_v : rows[i];
  }

  // From sums that lie in memory; `sums` may be null: there are none.
  template <class A> void write(const A* sums, int64_t ld, const A* factor) const {
    for (int32_t i = 0; i < count; ++i) {
      if (sums) store_row(sums + i * ld, factor[i], places[i], p.dim_v);
      else std::memset(static_cast<void*>(places[i]), 0, p.dim_v * sizeof(In));
    }
    done();
  }

  // All rows are in their places.
  void done() const {
    for (int32_t i = 0; writer.streams() && i < count; ++i) writer.write(places[i], rows[i]);
  }
};

ATTN_NAMESPACE_END
