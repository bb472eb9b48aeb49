// Sequences of random lengths for tests of pooling: batch entries, or packed along tokens with a few tokens left over.
#pragma once

#include "pool_case.h"

namespace attn {

struct SequenceOptions : PoolOptions {
  std::vector<int64_t> lengths;  // packed (batch is 1, tokens follow); empty: batch x tokens
  int64_t left_over = 3;         // tokens past the last packed sequence

  void pack(std::vector<int64_t> l) {
    lengths = std::move(l);
    batch = 1;
    tokens = left_over;
    for (const int64_t n : lengths) tokens += n;
  }
};

struct SequenceBounds {
  std::vector<int32_t> cu;
  int64_t batch, tokens;

  explicit SequenceBounds(const SequenceOptions& o) : batch(o.batch), tokens(o.tokens) {
    if (o.lengths.empty()) return;
    cu.push_back(0);
    for (const int64_t n : o.lengths) cu.push_back(cu.back() + static_cast<int32_t>(n));
  }
  Sequences view() const {
    const bool packed = !cu.empty();
    return {batch, tokens, packed ? cu.data() : nullptr, packed ? static_cast<int64_t>(cu.size()) - 1 : batch};
  }
  int64_t count() const { return view().count; }
  SequenceSpan span(int64_t i) const { return sequence_span(view(), i); }
  // Tokens of no sequence.
  int64_t end() const { return cu.empty() ? tokens : cu.back(); }
};

}  // namespace attn
