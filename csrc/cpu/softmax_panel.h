// Online softmax state of a panel and the step that absorbs a strip of scores (attn/softmax.h finishes a row). Logits
// are in base-2 units (already times log2 e). State: m = running maximum, l = sum of 2^(s - m).
#pragma once

#include "attn/softmax.h"
#include "cpu/exp.h"
#include "cpu/micro.h"

ATTN_NAMESPACE_BEGIN

// Turns scores s [n][W] into weights (written to `weights`, as operand type T) and updates m, l; alpha rescales what
// was accumulated so far. Scores times c > 0 are logits, and top is their maximum. A row that has seen no key keeps
// m = -inf and its weights are exactly 0. kShort: where weights are rounded to bf16, by up to 2e-3 of themselves, they
// and their sum may be off by 3e-6.
template <class T, int NV, bool kShort = false>
inline void softmax_panel(Acc<T>* s, int n, const vec<Acc<T>>* top, Acc<T> c, Acc<T>* m, Acc<T>* l, Acc<T>* alpha,
                          T* weights) {
  using A = Acc<T>;
  constexpr int L = Lanes<A>::n;
  vec<A> reference[NV], sum[NV];
  bool huge = false;
  for (int v = 0; v < NV; ++v) {
    const vec<A> old = load(m + v * L), fresh = vmax(old, top[v] * c);
    reference[v] = fresh == -static_cast<A>(__builtin_inff()) ? vec<A>{} : fresh;
    store(alpha + v * L, exp2v(old - reference[v]));
    store(m + v * L, fresh);
    sum[v] = vec<A>{};
    // Beyond, what is lost in rounding the maximum, a factor of all weights, would be felt and then overflow.
    const vec<A> limit = splat(static_cast<A>(1 << 20));
    if (any_lane(reference[v] > limit) || any_lane(reference[v] < -limit)) huge = true;
  }
  if (huge) {
    for (int i = 0; i < n * NV * L; i += L) store(s + i, load(s + i) * c);
    c = 1;
  }
  const auto weight = [&](const A* at, int v) __attribute__((always_inline)) {
    const vec<A> x = load(at) * c - reference[v];
    if constexpr (kShort && kPairRows<T>) return exp2_by<4>(x);
    else return exp2v(x);
  };
  if constexpr (kPairRows<T>) {
    // Two keys fill one row of weights; a last odd key is paired with nothing.
    T* to = weights;
    for (int j = n / 2; j > 0; --j, s += 2 * NV * L, to += NV * L) {
      ATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const vec<A> lo = weight(s + v * L, v), hi = weight(s + (NV + v) * L, v);
        sum[v] += lo + hi;
        store(to + v * L, make_pairs(lo, hi));
      }
    }
    for (int v = 0; n % 2 && v < NV; ++v) {
      const vec<A> lo = weight(s + v * L, v);
      sum[v] += lo;
      store(to + v * L, make_pairs(lo, vec<A>{}));
    }
  } else {
    for (int j = 0; j < n; ++j) {
      ATTN_UNROLL
      for (int v = 0; v < NV; ++v) {
        const vec<A> x = weight(s + (j * NV + v) * L, v);
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
    const vec<A> some = empty ? vec<A>{} + 1 : sum;  // about 1 or more: the largest weight is 1 but for rounding
    store(factor + r, empty ? vec<A>{} : scale / some);
    store(lse + r, empty ? least : (top + log2v(some)) * static_cast<A>(kLn2));
  }
}

ATTN_NAMESPACE_END
