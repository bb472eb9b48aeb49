// What the products of query pooling take as operands: kept tokens as rows or columns, queries as panels (pack.h).
#pragma once

#include "cpu/few_queries.h"
#include "cpu/pack.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

// The kept tokens among the next ones of a sequence.
struct TokenList {
  int64_t at[128];  // positions
  int n;
  bool run;  // consecutive

  static TokenList run_of(int64_t first, int64_t count) {
    TokenList list;
    list.n = static_cast<int>(count);
    list.run = true;
    for (int i = 0; i < list.n; ++i) list.at[i] = first + i;
    return list;
  }

  // Fills up to `most` tokens from [begin, end); returns where it stopped.
  int64_t fill(const MaskView& mask, const SequenceSpan& s, int64_t begin, int64_t end, int64_t most) {
    n = 0;
    for (; begin < end && n < most; ++begin) {
      if (taken(mask, s.batch, s.first + begin)) at[n++] = begin;
    }
    run = n > 0 && at[n - 1] - at[0] == n - 1;
    return begin;
  }
};

// Rows of tokens as an operand: [n][ld].
template <class T> struct Operands {
  const T* data;
  int64_t ld;
};

// Left operand of dot_panel. Used where it lies if it is a run of rows of the operand's own type.
template <class T, class In>
inline Operands<T> as_rows(const In* base, int64_t stride, int64_t dim, const TokenList& t, T* scratch) {
  if constexpr (std::is_same_v<T, In>) {
    if (t.run) return {base + t.at[0] * stride, stride};
  }
  const int64_t ld = depth_of<T>(dim);
  for (int i = 0; i < t.n; ++i) Pack<T, In>::row(base + t.at[i] * stride, dim, scratch + i * ld, ld);
  return {scratch, ld};
}

// Right operand of acc_panel: rows padded to whole vectors, pairs of rows interleaved for bf16x2.
template <class T, class In>
inline Operands<T> as_columns(const In* base, int64_t stride, int64_t dim, const TokenList& t, T* scratch) {
  const int64_t ld = round_up_lanes<T>(dim);
  if constexpr (std::is_same_v<T, In>) {
    if (t.run && ld == dim) return {base + t.at[0] * stride, stride};
  }
  for (int i = 0; i < t.n; i += kPair<T>) {
    const In* second = i + 1 < t.n ? base + t.at[i + 1] * stride : nullptr;
    pack_row_pair<T, In>(base + t.at[i] * stride, second, dim, scratch + i / kPair<T> * ld, ld);
  }
  return {scratch, ld};
}

// The queries of a head as panels: panel i holds rows [i W, (i + 1) W); the last one is one vector wide if that is
// enough.
template <class T> struct PanelCut {
  static constexpr int W = kPanel<T>, L = kLanes<T>;
  int64_t queries;

  int64_t panels() const { return (queries + W - 1) / W; }
  int64_t padded_rows() const { return panels() * W; }
  int rows(int64_t panel) const { return static_cast<int>(queries - panel * W < W ? queries - panel * W : W); }
  int vectors(int64_t panel) const { return rows(panel) <= L ? 1 : 2; }
};

// Calls f(number of vectors as a constant).
template <class F> ATTN_INLINE void with_vectors(int vectors, F&& f) {
  if (vectors == 1) f(std::integral_constant<int, 1>{});
  else f(std::integral_constant<int, 2>{});
}

template <class T, class In>
inline void pack_queries(const In* base, int64_t stride, int64_t dim, const PanelCut<T>& cut, int64_t panel, T* to) {
  const int width = cut.vectors(panel) * kLanes<T>;
  pack_panel<T, In>([&](int64_t r) { return base + (panel * cut.W + r) * stride; }, cut.rows(panel), dim, to, width);
}

}  // namespace pool
ATTN_NAMESPACE_END
