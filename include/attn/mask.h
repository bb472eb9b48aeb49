// The token rule: which keys a query row may see by position alone. Every kernel of every backend masks through
// `visible`; schedules (schedule.h) only decide which keys are looked at.
#pragma once

#include "attn/types.h"

namespace attn {

// Causal, window and sink flags as the user gives them. Row i of a sequence stands at position
// i + (keys - queries): bottom-right alignment.
struct TokenRule {
  bool causal;
  int64_t left;   // keys kept before the row's position; -1 = all, kEmptyWindow = only exempt keys are seen
  int64_t right;  // keys kept after it; -1 = all
  int64_t sink;   // the first `sink` keys are exempt from the window
};

// What one row sees: keys in [lo, hi], and exempt keys (sinks, listed keys of a HiP selection) up to `cap`.
struct RowWindow { int32_t lo, hi, cap; };

// No position reaches this value; it stands for "no bound".
constexpr int32_t kUnbounded = INT32_MAX;

constexpr int64_t kEmptyWindow = -2;

}  // namespace attn

ATTN_NAMESPACE_BEGIN

ATTN_HD int32_t clamp_position(int64_t x) {
  return x < -kUnbounded ? -kUnbounded : x > kUnbounded ? kUnbounded : static_cast<int32_t>(x);
}

ATTN_HD RowWindow row_window(const TokenRule& rule, int64_t position) {
  RowWindow w;
  w.cap = rule.causal ? clamp_position(position) : kUnbounded;
  const int32_t right = rule.right < 0 ? kUnbounded : clamp_position(position + rule.right);
  w.hi = right < w.cap ? right : w.cap;
  w.lo = rule.left == kEmptyWindow ? kUnbounded : rule.left < 0 ? -kUnbounded : clamp_position(position - rule.left);
  return w;
}

// Works on scalars (bool result) and on SIMD vectors (lane masks): only operators both have. `exempt` is a mask.
template <class Key, class Row, class Mask>
ATTN_HD auto visible(Key key, Row lo, Row hi, Row cap, Mask exempt) {
  return ((key >= lo) & (key <= hi)) | (exempt & (key <= cap));
}

// The same for 32 keys from `first` on that aren't exempt, a bit each.
ATTN_HD uint32_t visible_word(int32_t first, int32_t lo, int32_t hi) {
  const int32_t from = lo > first ? lo : first, to = hi < first + 31 ? hi : first + 31;
  return to < from ? 0 : (~0u << (from - first)) & (~0u >> (first + 31 - to));
}

ATTN_NAMESPACE_END
