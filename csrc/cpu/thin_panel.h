// Scores and their softmax for a handful of query rows (decoding); thin_values.h has the second product. A panel would
// leave most SIMD lanes empty, so features lie in lanes instead: K and V stream once from where they lie, converted in
// registers, and nothing is packed. Scores are [keys][kThinRows]: a vector holds several keys, so no lane of the
// exponential is idle.
//
// The time is that of reading memory only if fetches are always under way, as many at any moment as at any other: keys
// are gone through in short panels, K and V of one in turn (thin_rows.h), every step fetches a row of the block that
// comes next, and rows are fetched and read in the order of their addresses, which the hardware's own prefetching goes
// on from.
#pragma once

#include "cpu/mask_panel.h"
#include "cpu/thin_rows.h"

ATTN_NAMESPACE_BEGIN

// Query rows handled together: every vector of K or V that is loaded serves four multiply-adds.
constexpr int kThinRows = 4;
constexpr int kThinRowsAtMost = 4 * kThinRows;  // of a kv head: room for what thin_rows_at_most allows
template <class A> constexpr bool kThinFits = Lanes<A>::n >= kThinRows;
template <class A> constexpr int kThinKeys = Lanes<A>::n / kThinRows;  // keys whose scores fill one vector
// Scores of a strip are rounded up to so many keys; those past its end have weight 0.
constexpr int kThinStrip = 2 * ATTN_VBYTES / 4 / kThinRows;
ATTN_INLINE int64_t round_up_thin(int64_t n) { return (n + kThinStrip - 1) / kThinStrip * kThinStrip; }

// How elements are multiplied: converted, or as bf16 pairs where the CPU has the instruction for them.
template <class In> struct ThinOperand {
  using A = std::conditional_t<std::is_same<In, double>::value, double, float>;
  using Element = A;  // of the query rows
  using V = vec<A>;
  static constexpr bool pairs = false;
  static constexpr int step = Lanes<A>::n;  // features of one vector
  static ATTN_INLINE V of_key(const In* p) { return load_as(p, A{}); }
  static ATTN_INLINE V of_query(const Element* p) { return load(p); }
  static ATTN_INLINE vec<A> dot(vec<A> acc, V x, V y) { return acc + x * y; }
};
#if ATTN_BF16_DOT
template <> struct ThinOperand<bf16> {
  using A = float;
  using Element = bf16;
  using V = u32v;
  static constexpr bool pairs = true;
  static constexpr int step = 2 * Lanes<float>::n;
  static ATTN_INLINE V of_key(const bf16* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static ATTN_INLINE V of_query(const bf16* p) { return of_key(p); }
  static ATTN_INLINE f32v dot(f32v acc, V x, V y) { return dot_pairs(acc, x, y); }
};
#endif

// Elements of a padded query row.
template <class In> ATTN_INLINE int64_t thin_width(int64_t dim) {
  constexpr int64_t step = ThinOperand<In>::step;
  return (dim + step - 1) / step * step;
}

template <class In> inline void thin_query(const In* row, int64_t dim, typename ThinOperand<In>::Element* to) {
  const int64_t width = thin_width<In>(dim);
  if constexpr (ThinOperand<In>::pairs) {
    std::memcpy(static_cast<void*>(to), row, dim * sizeof(In));
    std::memset(static_cast<void*>(to + dim), 0, (width - dim) * sizeof(In));
  } else {
    convert_row(row, dim, to, width);
  }
}

// (a0 + a1, a2 + a3, b0 + b1, b2 + b3) of every 16 bytes, and sums of neighbouring 16 bytes of a, then of b: shuffles
// that need no table of indices and, within 16 bytes, can be executed twice a cycle where others can once.
template <int... I> ATTN_INLINE f32v add_pairs(f32v a, f32v b, std::integer_sequence<int, I...>) {
  constexpr int L = Lanes<float>::n;
  return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 * 2 + I % 4 / 2 * L)...) +
         __builtin_shufflevector(a, b, (I / 4 * 4 + I % 2 * 2 + I % 4 / 2 * L + 1)...);
}
template <int... I> ATTN_INLINE f32v add_quads(f32v a, f32v b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4)...) +
         __builtin_shufflevector(a, b, (I / 4 * 8 + I % 4 + 4)...);
}

// Is there a product for rows of `dim` features that are whole vectors?
template <class In> ATTN_INLINE bool thin_whole(int64_t dim) {
  using Op = ThinOperand<In>;
  constexpr bool registers = ATTN_VBYTES == 64 && std::is_same<typename Op::A, float>::value;  // 32 of them
  return registers && (dim == 2 * Op::step || dim == 4 * Op::step || dim == 8 * Op::step);
}

// thin_dot for rows of kSteps whole vectors, kThinQuad of them or more: key after key, query rows in registers.
constexpr int kThinQuad = 4;
template <int kSteps, class In, class Rows, class Later>
inline void thin_dot_whole(Rows k, Later later, int64_t n, const typename ThinOperand<In>::Element* q, float scale,
                           float* s, [[maybe_unused]] ThinLines lines) {
  using Op = ThinOperand<In>;
  constexpr int kKeys = kThinQuad, kHeld = kSteps < 4 ? kSteps : 4;  // steps whose query vectors fit the registers
  constexpr auto lanes = std::make_integer_sequence<int, Lanes<float>::n>{};
  typename Op::V held[kThinRows][kHeld];
  ATTN_UNROLL
  for (int r = 0; r < kThinRows; ++r) {
    ATTN_UNROLL
    for (int d = 0; d < kHeld; ++d) held[r][d] = Op::of_query(q + (r * kSteps + d) * Op::step);
  }
  for (int64_t j = 0; j < n; j += kKeys) {
    if (j + kKeys > n) j = n - kKeys;  // some of the last keys twice
    f32v part[kKeys];
    ATTN_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      const In *const row = k[j + i], *const fetched = later[j + i];
      if constexpr (Op::pairs) lines.fetch(j + i);
      f32v sum[kThinRows] = {};
      ATTN_UNROLL
      for (int d = 0; d < kSteps; ++d) {
        if (d * Op::step * sizeof(In) % 64 == 0) prefetch_row(fetched + d * Op::step, 1);
        const typename Op::V x = Op::of_key(row + d * Op::step);
        ATTN_UNROLL
        for (int r = 0; r < kThinRows; ++r) {
          const typename Op::V y =
              d < kHeld ? held[r][d < kHeld ? d : 0] : Op::of_query(q + (r * kSteps + d) * Op::step);
          sum[r] = Op::dot(sum[r], x, y);
        }
      }
      part[i] = add_pairs(add_pairs(sum[0], sum[1], lanes), add_pairs(sum[2], sum[3], lanes), lanes);
    }
    const f32v sums = add_quads(add_quads(part[0], part[1], lanes), add_quads(part[2], part[3], lanes), lanes);
    store(s + j * kThinRows, sums * scale);
  }
}

// The same for any rows.
template <class In, class A, class Rows, class Later>
inline void thin_dot_any(Rows k, Later later, int64_t n, int64_t dim, const typename ThinOperand<In>::Element* q,
                         A scale, A* s) {
  using Op = ThinOperand<In>;
  constexpr int L = Lanes<A>::n, kKeys = kThinKeys<A>;
  const int64_t width = thin_width<In>(dim), whole = dim / Op::step * Op::step;
  for (int64_t j = 0; j < n; j += kKeys) {
    const int64_t keys = n - j < kKeys ? n - j : kKeys;
    const In* row[kKeys];
    In tail[kKeys][Op::step];  // features past the last whole vector
    ATTN_UNROLL
    for (int i = 0; i < kKeys; ++i) {
      const int64_t key = j + (i < keys ? i : 0);
      row[i] = k[key];
      prefetch_row(later[key], dim);
      if (whole < dim) {
        std::memset(static_cast<void*>(tail[i]), 0, sizeof tail[i]);
        std::memcpy(tail[i], row[i] + whole, (dim - whole) * sizeof(In));
      }
    }
    // One loop that holds the sums in registers: GCC leaves them in memory if it is written twice.
    vec<A> sum[kKeys * kThinRows] = {};
    for (int64_t d = 0; d < width; d += Op::step) {
      typename Op::V x[kKeys];
      ATTN_UNROLL
      for (int i = 0; i < kKeys; ++i) x[i] = Op::of_key(d < whole ? row[i] + d : tail[i]);
      ATTN_UNROLL
      for (int r = 0; r < kThinRows; ++r) {
        const typename Op::V qv = Op::of_query(q + r * width + d);
        ATTN_UNROLL
        for (int i = 0; i < kKeys; ++i) sum[i * kThinRows + r] = Op::dot(sum[i * kThinRows + r], x[i], qv);
      }
    }
    store(s + j * kThinRows, neighbour_sums<A, L>(sum) * scale);
  }
  static_assert(L == kKeys * kThinRows || L < kThinRows, "a vector is whole keys");
}

// s [round_up_thin(n)][kThinRows]: scores of n key rows k with the query rows q, [kThinRows][thin_width]
// zero-padded; -inf past n. `later` are n rows to fetch on the way.
template <class In, class A, class Rows, class Later>
inline void thin_dot(Rows k, Later later, int64_t n, int64_t dim, const typename ThinOperand<In>::Element* q, A scale,
                     A* s, [[maybe_unused]] ThinLines lines) {
  if constexpr (ATTN_VBYTES == 64 && std::is_same<A, float>::value) {
    constexpr int64_t step = ThinOperand<In>::step;
    const int64_t steps = n < kThinQuad || !thin_whole<In>(dim) ? 0 : dim / step;
    if (steps == 2) thin_dot_whole<2, In>(k, later, n, q, scale, s, lines);
    else if (steps == 4) thin_dot_whole<4, In>(k, later, n, q, scale, s, lines);
    else if (steps == 8) thin_dot_whole<8, In>(k, later, n, q, scale, s, lines);
    else thin_dot_any<In, A>(k, later, n, dim, q, scale, s);
  } else {
    thin_dot_any<In, A>(k, later, n, dim, q, scale, s);
  }
  for (int64_t i = n * kThinRows; i < round_up_thin(n) * kThinRows; ++i) s[i] = -kInfinity<A>;
  static_assert(kThinStrip % kThinKeys<A> == 0, "a strip is whole vectors");
}

// The strip with one key a vector, as modify_panel takes it, and back.
template <class A> inline void thin_spread(const A* s, int64_t n, A* panel) {
  constexpr int L = Lanes<A>::n;
  std::memset(panel, 0, n * L * sizeof(A));
  for (int64_t j = 0; j < n; ++j) std::memcpy(panel + j * L, s + j * kThinRows, kThinRows * sizeof(A));
}
template <class A> inline void thin_gather(const A* panel, int64_t n, A* s) {
  constexpr int L = Lanes<A>::n;
  for (int64_t j = 0; j < n; ++j) std::memcpy(s + j * kThinRows, panel + j * L, kThinRows * sizeof(A));
}

// Lane i holds row i % kThinRows: values of the rows repeated, and what the lanes of every row come to.
template <class A, int... I> ATTN_INLINE vec<A> thin_repeat(const A* rows, std::integer_sequence<int, I...>) {
  return vec<A>{rows[I % kThinRows]...};
}
template <int kBy, class V, class F, int... I>
ATTN_INLINE V thin_fold(V x, F&& join, std::integer_sequence<int, I...> lanes) {
  if constexpr (kBy < kThinRows) return x;
  else
    return thin_fold<kBy / 2>(join(x, __builtin_shufflevector(x, x, ((I + kBy) % static_cast<int>(sizeof...(I)))...)),
                              join, lanes);
}

// As softmax_panel, in place: scores become weights, m and l of the kThinRows rows are updated, alpha is set.
template <class A> inline void thin_softmax(A* s, int64_t n, A* m, A* l, A* alpha) {
  constexpr int L = Lanes<A>::n;
  constexpr auto lanes = std::make_integer_sequence<int, L>{};
  const int64_t count = round_up_thin(n) * kThinRows;
  vec<A> top[2] = {splat(-kInfinity<A>), splat(-kInfinity<A>)};  // two at a time: half as long a chain
  for (int64_t i = 0; i < count; i += 2 * L) {
    top[0] = vmax(load(s + i), top[0]);
    top[1] = vmax(load(s + i + L), top[1]);
  }
  top[0] = vmax(top[0], top[1]);
  const vec<A> old = thin_repeat(m, lanes),
               fresh = vmax(thin_fold<L / 2>(
                                top[0], [](vec<A> x, vec<A> y) { return vmax(x, y); }, lanes),
                            old),
               base = fresh == -kInfinity<A> ? vec<A>{} : fresh, factor = exp2v(old - base);
  vec<A> sum{};
  for (int64_t i = 0; i < count; i += 2 * L) {
    const vec<A> w = exp2v(load(s + i) - base), x = exp2v(load(s + i + L) - base);
    sum += w + x;
    store(s + i, w);
    store(s + i + L, x);
  }
  sum = thin_fold<L / 2>(sum, [](vec<A> x, vec<A> y) { return x + y; }, lanes);
  const vec<A> total = thin_repeat(l, lanes) * factor + sum;
  std::memcpy(m, &fresh, kThinRows * sizeof(A));
  std::memcpy(l, &total, kThinRows * sizeof(A));
  std::memcpy(alpha, &factor, kThinRows * sizeof(A));
}

ATTN_NAMESPACE_END
