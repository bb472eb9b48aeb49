// Softmax in base-2 units, the end of a row. State: m = maximum of the logits times log2 e, l = sum of 2^(s - m).
#pragma once

#include <cmath>

#include "attn/types.h"

ATTN_NAMESPACE_BEGIN

constexpr double kLog2e = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// Ends a row: the factor its accumulated values are multiplied by, and its lse in natural-log units. `sink` is a
// further logit without a value (-inf: none).
template <class A> ATTN_HD void finish_row(A m, A l, A sink, A& factor, A& lse) {
  const A infinity = static_cast<A>(__builtin_inff());
  factor = 1;
  if (sink > -infinity) {
    const A top = sink > m ? sink : m;
    factor = m == -infinity ? 0 : std::exp2(m - top);
    l = l * factor + std::exp2(sink - top);
    m = top;
  }
  lse = l == 0 ? -infinity : m * static_cast<A>(kLn2) + std::log(l);
  factor = l == 0 ? 0 : factor / l;
}

ATTN_NAMESPACE_END
