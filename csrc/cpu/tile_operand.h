// Rows of a tensor as operands of micro.h. They are used where they lie when they are one run of the operand's own
// type, and copied into scratch otherwise.
#pragma once

#include "cpu/pack.h"
#include "cpu/row_fetch.h"

ATTN_NAMESPACE_BEGIN

// An element of a weight matrix whose contracted dimension is contiguous (pairs lie side by side by themselves).
template <class T> struct DsElementOf { using type = T; };
template <> struct DsElementOf<bf16x2> { using type = bf16; };
template <class T> using DsElement = typename DsElementOf<T>::type;

// Consecutive rows of one page (page 0 where nothing is paged).
struct Run { int32_t page, begin, count; };

// Rows fetched ahead while a scattered tile is packed: a memory access (100 ns) against about 10 ns a row.
constexpr int64_t kPrefetchRows = 12;

// Tokens of a tile, as runs into a [page, token, feature] array.
template <class In> struct TokenRows {
  const In* base;
  int64_t page_stride, stride, dim;
  const Run* run;
  int runs, n;
  const int32_t *page, *index;  // page of each row and its index there; may be null where runs == 1

  // Starts fetching row i; scattered rows defeat the hardware's own prefetching.
  ATTN_INLINE void prefetch(int64_t i) const {
    if (runs > 1 && i < n) fetch<3>(i);
  }

  // The same into the cache of a level (3: L1, 2: L2), for any rows.
  template <int kLevel> ATTN_INLINE void fetch(int64_t i) const { prefetch_row<kLevel>(row(i), dim); }

  const In* first(const Run& r) const { return base + r.page * page_stride + r.begin * stride; }

  const In* row(int64_t i) const {
    if (runs == 1) return first(run[0]) + i * stride;
    return base + page[i] * page_stride + index[i] * stride;
  }

  // Whole blocks, of which the hardware fetches by itself what it hasn't been told to. Shorter runs are gone through
  // row by row: there are too few rows to make up for finding each run's first.
  bool long_runs() const { return runs == 1 || n >= 32 * runs; }

  // Calls f(i, row i) or, for kRows = 2, f(i, row i, row i + 1) for all rows; the one after the last is null.
  template <int kRows, class F> ATTN_INLINE void for_groups(F&& f) const {
    static_assert(kRows == 1 || kRows == 2);
    if (!long_runs() || !whole_groups(kRows)) {
      for (int64_t i = 0; i < n; i += kRows) {
        for (int64_t j = 0; j < kRows; ++j) prefetch(i + kPrefetchRows + j);
        if constexpr (kRows == 1) f(i, row(i));
        else f(i, row(i), i + 1 < n ? row(i + 1) : nullptr);
      }
      return;
    }
    int64_t i = 0;
    for (int r = 0; r < runs; ++r) {
      const In* at = first(run[r]);
      for (int64_t end = i + run[r].count; i < end; i += kRows, at += kRows * stride) {
        if constexpr (kRows == 1) f(i, at);
        else f(i, at, i + 1 < end ? at + stride : nullptr);
      }
    }
  }

 private:
  // Does no group of `rows` rows begin in one run and end in the next?
  bool whole_groups(int32_t rows) const {
    for (int r = 0; r + 1 < runs; ++r) {
      if (run[r].count % rows != 0) return false;
    }
    return true;
  }
};

// What is needed after the tile that is worked on (keys and values, rows of queries), fetched into L2 a few rows at a
// time, spread over the products of this one.
template <class In> struct FetchAhead {
  TokenRows<In> k, v;
  int64_t next = 0, rows = 0, step = 0;  // rows [next, rows) are left, `step` at a time
  int run = 0;                           // that `next` lies in,
  int64_t run_end = 0;                   // and the first row after it
  const In *k_next = nullptr, *v_next = nullptr;
  RowFetch<In> queries;

  // Rows from `first` on, in about `steps` steps.
  void start(const TokenRows<In>& keys, const TokenRows<In>& values, int64_t first, int64_t steps) {
    k = keys;
    v = values;
    next = first;
    rows = keys.n;
    step = steps > 0 ? (rows - first + steps - 1) / steps : 0;
    run = -1;
    run_end = 0;
    if (next < rows) open_run();
  }

  // The run of row `next`.
  void open_run() {
    while (run_end <= next) run_end += k.run[++run].count;
    const int64_t skipped = next - (run_end - k.run[run].count);
    k_next = k.first(k.run[run]) + skipped * k.stride;
    v_next = v.first(v.run[run]) + skipped * v.stride;
  }
  void stop() {
    next = rows = step = 0;
    queries.stop();
  }

  ATTN_INLINE void operator()() {
    const int64_t end = next + step < rows ? next + step : rows;
    while (next < end) {
      if (next == run_end) open_run();
      const int64_t until = end < run_end ? end : run_end;
      for (; next < until; ++next, k_next += k.stride, v_next += v.stride) {
        prefetch_row<2>(k_next, k.dim);
        prefetch_row<2>(v_next, v.dim);
      }
    }
    queries();
  }
};

// Where an operand tile lies: in place or in scratch.
template <class T> struct Placed {
  const T* data;
  int64_t ld;
};

// Do rows lie in memory as operand elements?
template <class T, class In> ATTN_INLINE bool are_operands(const TokenRows<In>& t) {
  return sizeof(In) * kPair<T> == sizeof(T) && t.dim % kPair<T> == 0 && t.stride % kPair<T> == 0 &&
         t.run[0].page * t.page_stride % kPair<T> == 0 && reinterpret_cast<uintptr_t>(t.base) % sizeof(T) == 0;
}

// As the operand that is broadcast: [n][depth].
template <class T, class In> inline Placed<T> place_rows(const TokenRows<In>& t, T* scratch) {
  const int64_t depth = depth_of<T>(t.dim);
  if (t.runs == 1 && are_operands<T>(t)) return {reinterpret_cast<const T*>(t.row(0)), t.stride / kPair<T>};
  t.template for_groups<1>([&](int64_t i, const In* row) __attribute__((always_inline)) {
    Pack<T, In>::row(row, t.dim, scratch + i * depth, depth);
  });
  return {scratch, depth};
}

template <class T, class In> inline void copy_columns(const TokenRows<In>& t, T* to, int64_t ld) {
  t.template for_groups<kPair<T>>([&](int64_t i, const In* lo, const In* hi = nullptr) __attribute__((always_inline)) {
    pack_row_pair<T, In>(lo, hi, t.dim, to + i / kPair<T> * ld, ld);
  });
}

// As the operand that is read by vectors: [n, or pairs][columns], columns a multiple of the lanes. `rows`, if not
// null, is the same tile already placed by place_rows; it serves when its form is the same.
template <class T, class In>
inline Placed<T> place_columns(const TokenRows<In>& t, const Placed<T>* rows, T* scratch) {
  const int64_t ld = round_up_lanes<T>(t.dim);
  if (kPair<T> == 1 && t.dim == ld) return rows ? *rows : place_rows<T, In>(t, scratch);
  copy_columns<T, In>(t, scratch, ld);
  return {scratch, ld};
}

// Columns of a packed tile, an odd number of cache lines apart: rows a power of two apart share few sets of the cache.
template <class T> ATTN_INLINE int64_t padded_columns(int64_t n) {
  const int64_t columns = round_up_lanes<T>(n), line = 64 / static_cast<int64_t>(sizeof(T));
  return columns % (2 * line) == 0 ? columns + line : columns;
}

template <class In> ATTN_INLINE bool row_is_finite(const In* x, int64_t n) {
  using A = std::conditional_t<std::is_same<In, double>::value, double, float>;
  vec<A> sum{};
  int64_t i = 0;
  for (; i + Lanes<A>::n <= n; i += Lanes<A>::n) sum += load_as(x + i, A{}) * A{0};  // NaN if any entry isn't finite
  A rest = 0;
  for (; i < n; ++i) rest += to_float(x[i]) * A{0};
  for (int k = 0; k < Lanes<A>::n; ++k) rest += sum[k];
  return rest == 0;
}

// Weight of row n of the contracted dimension in lane `lane` of a strip of width W.
ATTN_INLINE float weight_at(const bf16x2* p, int64_t width, int64_t n, int64_t lane) {
  const uint32_t u = p[n / 2 * width + lane].bits;
  return bit_cast<float>(n % 2 ? u & 0xffff0000u : u << 16);
}
template <class A> ATTN_INLINE A weight_at(const A* p, int64_t width, int64_t n, int64_t lane) {
  return p[n * width + lane];
}

template <class T> inline void clear_row(T* columns, int64_t ld, int64_t row) {
  for (int64_t x = 0; x < ld; ++x) columns[row * ld + x] = T{0};
}
template <> inline void clear_row<bf16x2>(bf16x2* columns, int64_t ld, int64_t row) {
  for (int64_t x = 0; x < ld; ++x) columns[row / 2 * ld + x].bits &= row % 2 ? 0xffffu : 0xffff0000u;
}

// The right operand of acc_panel, with one duty more: a weight of 0 must silence a row even if it holds NaN or Inf
// (0 * NaN is NaN). Tiles with masked entries are therefore checked; rows that aren't finite are taken out of the
// matrix product and added one by one to the lanes whose weight isn't 0.
template <class T, class In> struct ColumnOperand {
  TokenRows<In> rows;
  Placed<T> at;
  T* scratch;      // [n, or pairs][columns]
  const In* held;  // the first row, where they are a run; null: nothing is placed yet
  bool checked;
  int bad_count;
  int16_t bad[256];

  void use(const TokenRows<In>& tokens, const Placed<T>& placed) {
    rows = tokens;
    at = placed;
    held = tokens.runs == 1 ? tokens.row(0) : nullptr;
    checked = false;
    bad_count = 0;
  }

  // Are they in place already? Of one tensor, which hasn't changed since.
  bool holds(const TokenRows<In>& tokens) {
    if (!held || tokens.runs != 1 || tokens.row(0) != held || tokens.n != rows.n) return false;
    rows = tokens;
    return true;
  }

  void place(const TokenRows<In>& tokens, const Placed<T>* as_rows) {
    use(tokens, place_columns<T, In>(tokens, as_rows, scratch));
  }

  // The same, always copied, so that it can be read many times from L1. scratch holds padded_columns a row.
  void pack(const TokenRows<In>& tokens) {
    const int64_t ld = padded_columns<T>(tokens.dim);
    copy_columns<T, In>(tokens, scratch, ld);
    use(tokens, {scratch, ld});
  }

  void check() {
    if (checked) return;
    checked = true;
    if (all_finite()) return;
    for (int i = 0; i < rows.n; ++i) {
      if (!row_is_finite(rows.row(i), rows.dim)) bad[bad_count++] = static_cast<int16_t>(i);
    }
    if (bad_count == 0) return;
    if (at.data != scratch) {
      for (int64_t i = 0; i < rows.n; ++i)
        std::memcpy(static_cast<void*>(scratch + i * columns()), at.data + i * at.ld, columns() * sizeof(T));
      at = {scratch, columns()};
    }
    for (int i = 0; i < bad_count; ++i) clear_row(scratch, at.ld, bad[i]);
  }

  // One sweep over the placed tile for the largest exponent.
  bool all_finite() const {
    using A = Acc<T>;
    using Bits = vec<std::conditional_t<std::is_same<A, double>::value, int64_t, int32_t>>;
    constexpr int L = kLanes<T>;
    const Bits infinity = bit_cast<Bits>(splat(static_cast<A>(__builtin_inff())));
    const int64_t n = depth_of<T>(rows.n);
    Bits top{};
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t x = 0; x < columns(); x += L) {
        const Bits u = bit_cast<Bits>(load(at.data + i * at.ld + x));
        top = vmax(top, u & infinity);
        if constexpr (kPairRows<T>) top = vmax(top, u << 16 & infinity);
      }
    }
    bool finite = true;
    for (int k = 0; k < L; ++k) finite &= top[k] != infinity[k];
    return finite;
  }

  int64_t columns() const { return round_up_lanes<T>(rows.dim); }

  // o[lane] = o[lane] * alpha[lane] + sum over rows [first, first + n) of weight * row. `first` is even for pairs.
  void accumulate(const T* weights, int64_t width, int64_t lanes, int64_t first, int64_t n, const Acc<T>* alpha,
                  Acc<T>* o, int64_t ldo) const {
    acc_panel<T>(weights, width, lanes, depth_of<T>(n), at.data + first / kPair<T> * at.ld, at.ld, columns(), alpha, o,
                 ldo);
    for (int i = 0; i < bad_count; ++i) {
      const int64_t j = bad[i] - first;
      if (j < 0 || j >= n) continue;
      const In* row = rows.row(bad[i]);
      for (int64_t r = 0; r < lanes; ++r) {
        const Acc<T> w = weight_at(weights, width, j, r);
        for (int64_t x = 0; w != 0 && x < rows.dim; ++x) o[r * ldo + x] += w * to_float(row[x]);
      }
    }
  }

  // Can write_rows stand in for accumulate?
  bool writes_rows() const { return bad_count == 0 && rows.dim == columns(); }

  // As accumulate, but the sums times factor[lane] go to to[lane] from registers, and o is only read.
  template <class Out>
  void write_rows(const T* weights, int64_t width, int64_t lanes, int64_t first, int64_t n, const Acc<T>* alpha,
                  const Acc<T>* o, int64_t ldo, const Acc<T>* factor, Out* const* to) const {
    const auto write_block = [&](auto& acc, int64_t r0, int64_t column) __attribute__((always_inline)) {
      constexpr int L = kLanes<T>, R = kAccBlock<T>, V = std::extent_v<std::remove_reference_t<decltype(acc)>, 1>;
      ATTN_UNROLL
      for (int r = 0; r < R; ++r) {
        if (r0 + r >= lanes) break;
        ATTN_UNROLL
        for (int v = 0; v < V; ++v) {
          vec<Acc<T>> x = acc[r][v];
          if (alpha) x += load(o + (r0 + r) * ldo + column + v * L) * alpha[r0 + r];
          store_as(to[r0 + r] + column + v * L, x * factor[r0 + r]);
        }
      }
    };
    for_acc_blocks<T>(weights, width, lanes, depth_of<T>(n), at.data + first / kPair<T> * at.ld, at.ld, columns(),
                      write_block);
  }

  // o[r] += sum over all n rows of this operand of weights[r][i] * row i: the weights are row-major, `ld` wide.
  void add_to_rows(const DsElement<T>* weights, int64_t ld, int64_t count, Acc<T>* o, int64_t ldo) const {
    add_rows<T>(reinterpret_cast<const T*>(weights), ld / kPair<T>, count, depth_of<T>(rows.n), at.data, at.ld,
                columns(), o, ldo);
    for (int i = 0; i < bad_count; ++i) {
      const In* row = rows.row(bad[i]);
      for (int64_t r = 0; r < count; ++r) {
        const Acc<T> w = to_float(weights[r * ld + bad[i]]);
        for (int64_t x = 0; w != 0 && x < rows.dim; ++x) o[r * ldo + x] += w * to_float(row[x]);
      }
    }
  }
};

ATTN_NAMESPACE_END
