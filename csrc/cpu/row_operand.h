// The rows that the forward pass broadcasts (K), in place even where a tile gathers several blocks.
#pragma once

#include "cpu/tile_operand.h"

ATTN_NAMESPACE_BEGIN

// Rows as the operand that is broadcast, left where they lie as long as their runs are long: the product doesn't mind
// where it is interrupted, and copying the keys of scattered blocks costs some percent of it.
template <class T, class In> struct RowOperand {
  TokenRows<In> rows;
  Placed<T> at;
  bool in_runs;

  void place(const TokenRows<In>& tokens, T* scratch) {
    rows = tokens;
    in_runs = tokens.runs > 1 && tokens.long_runs() && are_operands<T>(tokens);
    for (int i = 1; in_runs && i < tokens.runs; ++i) in_runs = tokens.run[i].page * tokens.page_stride % kPair<T> == 0;
    if (!in_runs) at = place_rows<T, In>(tokens, scratch);
  }

  // Calls f(first row, its distance to the next, count) for rows [a, b), in order.
  template <class F> ATTN_INLINE void for_runs(int a, int b, F&& f) const {
    if (!in_runs) return f(at.data + a * at.ld, at.ld, b - a);
    for (int i = 0, begin = 0; i < rows.runs && begin < b; begin += rows.run[i++].count) {
      const int skipped = a > begin ? a - begin : 0,
                end = b - begin < rows.run[i].count ? b - begin : rows.run[i].count;
      if (skipped >= end) continue;
      f(reinterpret_cast<const T*>(rows.first(rows.run[i]) + skipped * rows.stride), rows.stride / kPair<T>,
        end - skipped);
    }
  }
};

ATTN_NAMESPACE_END
