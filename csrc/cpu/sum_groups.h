// Adds what the query heads of a group contribute to their common key and value head.
#pragma once

#include "cpu/feature_rows.h"
#include "cpu/linear_rows.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

template <class In> struct SumGroups {
  using A = Acc<Operand<In>>;
  const SumGroupsParams& p;

  explicit SumGroups(const SumGroupsParams& params) : p(params) {}

  void run() const {
    constexpr int64_t kTokens = 64;
    const int64_t blocks = (p.tokens + kTokens - 1) / kTokens,
                  ld = (p.dim + Lanes<A>::n - 1) / Lanes<A>::n * Lanes<A>::n;
    parallel_items(p.batch * p.heads_kv * blocks, [&](int64_t item, int) {
      const int64_t b = item / blocks / p.heads_kv, head = item / blocks % p.heads_kv, first = item % blocks * kTokens;
      A* sum = static_cast<A*>(thread_scratch(2 * ld * sizeof(A)));
      for (int64_t t = first; t < min_count(first + kTokens, p.tokens); ++t) {
        load_row(row_at<const In>(p.x, b, head * p.group, t), p.dim, sum, ld);
        for (int64_t i = 1; i < p.group; ++i) {
          load_row(row_at<const In>(p.x, b, head * p.group + i, t), p.dim, sum + ld, ld);
          add_row(sum, sum + ld, ld);
        }
        store_scaled_row(row_at<In>(p.out, b, head, t), A{1}, sum, p.dim);
      }
    });
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
