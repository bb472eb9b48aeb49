// Online softmax state of a panel and the step that absorbs a strip of scores (attn/softmax.h finishes a row). Logits
// are in base-2 units (already times log2 e). State: m = running maximum, l = sum of 2^(s - m).
#pragma once

#include "attn/softmax.h"
#include "cpu/exp.h"
#include "cpu/micro.h"

ATTN_NAMESPACE_BEGIN

// Turns scores s [n][W] into weights (written to `weights`, as operand type T) and updates m, l; alpha rescales what
// was accumulated so far. A row that has seen no key keeps m = -inf and its weights are exactly 0.
template <class T, int NV>
inline void softmax_panel(Acc<T>* s, int n, const vec<Acc<T>>* top, Acc<T>* m, Acc<T>* l, Acc<T>* alpha, T* weights) {
  using A = Acc<T>;
  constexpr int L = Lanes<A>::n;
  vec<A> reference[NV], sum[NV];
  for (int v = 0; v < NV; ++v) {
    const vec<A> old = load(m + v * L), fresh = vmax(old, top[v]);
    reference[v] = fresh == -static_cast<A>(__builtin_inff()) ? vec<A>{} : fresh;
    store(alpha + v * L, exp2v(old - reference[v]));
    store(m + v * L, fresh);
    sum[v] = vec<A>{};
  }
  if constexpr (kPairRows<T>) {
    // Two keys fill one row of weights; a last odd key is paired with nothing.
    T* to = weights;
    for (int j = n / 2; j > 0; --j, s += 2 * NV * L, to += NV * L) {
      ATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const vec<A> lo = exp2v(load(s + v * L) - reference[v]), hi = exp2v(load(s + (NV + v) * L) - reference[v]);
        sum[v] += lo + hi;
        store(to + v * L, make_pairs(lo, hi));
      }
    }
    for (int v = 0; n % 2 && v < NV; ++v) {
      const vec<A> lo = exp2v(load(s + v * L) - reference[v]);
      sum[v] += lo;
      store(to + v * L, make_pairs(lo, vec<A>{}));
    }
  } else {
    for (int j = 0; j < n; ++j) {
      ATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const vec<A> x = exp2v(load(s + (j * NV + v) * L) - reference[v]);
        sum[v] += x;
        store(weights + (j * NV + v) * L, x);
      }
    }
  }
  for (int v = 0; v < NV; ++v) store(l + v * L, load(l + v * L) * load(alpha + v * L) + sum[v]);
}

// finish_row (attn/softmax.h) for n rows, rounded up to whole vectors. `sink` may be null: none has one.
template <class A> inline void finish_rows(const A* m, const A* l, const A* sink, int64_t n, A* factor, A* lse) {
  constexpr int L = Lanes<A>::n;
  const vec<A> least = splat(-static_cast<A>(__builtin_inff()));
  for (int64_t r = 0; r < n; r += L) {
    vec<A> top = load(m + r), sum = load(l + r), scale = vec<A>{} + 1;
    if (sink) {
      const vec<A> given = load(sink + r), logit = given > least ? given : least;
      top = vmax(logit, top);
      const vec<A> reference = top == least ? vec<A>{} : top;
      scale = exp2v(load(m + r) - reference);
      sum = sum * scale + exp2v(logit - reference);
    }
    const auto empty = sum == 0;
    const vec<A> some = empty ? vec<A>{} + 1 : sum;  // at least 1: the largest weight is
    store(factor + r, empty ? vec<A>{} : scale / some);
    store(lse + r, empty ? least : top * static_cast<A>(kLn2) + log2v(some) * static_cast<A>(kLn2));
  }
}

ATTN_NAMESPACE_END
