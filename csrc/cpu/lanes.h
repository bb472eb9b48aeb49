// Rows of channels, a vector at a time: one loop body serves full vectors and the rest of a row. Elements are converted
// to the type sums are kept in (float, double for double) when they are loaded.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/simd.h"

ATTN_NAMESPACE_BEGIN
namespace pool {

template <class T> struct SumOf { using type = float; };
template <> struct SumOf<double> { using type = double; };
template <class T> using Sum = typename SumOf<T>::type;

template <class S> constexpr S kInf = std::numeric_limits<S>::infinity();

// How much of a vector a loop body works on.
struct Whole {};
struct Part { int64_t n; };  // the first n lanes, 0 < n < lanes

template <class T> ATTN_INLINE vec<Sum<T>> get(const T* p, Whole) { return load_as(p, Sum<T>{}); }

// The lanes past the part are 0.
template <class T> ATTN_INLINE vec<Sum<T>> get(const T* p, Part part) {
  T copy[Lanes<Sum<T>>::n] = {};
  std::memcpy(copy, p, part.n * sizeof(T));
  return load_as(copy, Sum<T>{});
}

template <class T> ATTN_INLINE void put(T* p, vec<Sum<T>> v, Whole) { store_as(p, v); }

template <class T> ATTN_INLINE void put(T* p, vec<Sum<T>> v, Part part) {
  T copy[Lanes<Sum<T>>::n];
  store_as(copy, v);
  std::memcpy(p, copy, part.n * sizeof(T));
}

// Calls f(i, Whole) or f(i, Part) for i = 0, lanes, 2 lanes, ... below n.
template <class S, class F> ATTN_INLINE void for_lanes(int64_t n, F&& f) {
  constexpr int L = Lanes<S>::n;
  int64_t i = 0;
  for (; i + L <= n; i += L) f(i, Whole{});
  if (i < n) f(i, Part{n - i});
}

// Lanes where a or b is NaN.
template <class V> ATTN_INLINE auto unordered(V a, V b) {
#if ATTN_VBYTES == 32 && defined(__AVX__)
  if constexpr (std::is_same_v<V, f32v>) return (i32v)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q);
#endif
  return (a != a) | (b != b);
}

// v, but NaN where `mask` is set.
template <class V, class M> ATTN_INLINE V nan_where(M mask, V v) { return bit_cast<V>(bit_cast<M>(v) | mask); }

// The maximum; NaN if any of the arguments is (a > b alone would drop the NaN of one side).
template <class V> ATTN_INLINE V max_or_nan(V a, V b) { return nan_where(unordered(a, b), vmax(a, b)); }
template <class V> ATTN_INLINE V max_or_nan(V a, V b, V c) {
  return nan_where(unordered(a, b) | (c != c), vmax(vmax(a, b), c));
}

// Sum and maximum over the lanes. Halving keeps the additions independent of each other.
template <class S> ATTN_INLINE S sum_lanes(vec<S> v) {
  constexpr int L = Lanes<S>::n;
  S x[L];
  store(x, v);
  ATTN_UNROLL
  for (int half = L / 2; half > 0; half /= 2) {
    ATTN_UNROLL
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  }
  return x[0];
}

// out[i] = the sum over the lanes of x[i]: the vectors are added up together, down to one that holds sums only. N and
// the lanes are powers of two.
template <int N, class S> ATTN_INLINE void sum_lanes_of_each(const vec<S> (&x)[N], S* out) {
  constexpr int L = Lanes<S>::n;
  if constexpr (N == 1) {
    *out = sum_lanes<S>(x[0]);
  } else if constexpr (N > L) {
    for (int i = 0; i < N; ++i) out[i] = sum_lanes<S>(x[i]);
  } else {
    vec<S> sums = neighbour_sums<S, N>(x);
    for (int held = L / N; held > 1; held /= 2) sums = add_neighbours(sums, sums, std::make_integer_sequence<int, L>{});
    std::memcpy(out, &sums, N * sizeof(S));
  }
}

template <class S> ATTN_INLINE S max_lanes(vec<S> v) {
  constexpr int L = Lanes<S>::n;
  S x[L];
  store(x, v);
  S top = x[0];
  for (int i = 1; i < L; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// ---- whole rows ------------------------------------------------------------------------------------------------

template <class T> ATTN_INLINE void clear_row(T* row, int64_t n) {
  if (n == 0) return;  // a tensor without elements may have no address, which memset doesn't take
  std::memset(static_cast<void*>(row), 0, n * sizeof(T));
}

template <class S> ATTN_INLINE void fill_row(S* row, S value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] = value;
}

// sum += x
template <class T> ATTN_INLINE void add_row(Sum<T>* sum, const T* x, int64_t n) {
  for_lanes<Sum<T>>(n, [&](int64_t i, auto w) { put(sum + i, get(sum + i, w) + get(x + i, w), w); });
}

// sum += a * b
template <class T> ATTN_INLINE void add_product(Sum<T>* sum, const T* a, const T* b, int64_t n) {
  for_lanes<Sum<T>>(n, [&](int64_t i, auto w) { put(sum + i, get(sum + i, w) + get(a + i, w) * get(b + i, w), w); });
}

// out = factor * x, rounded.
template <class T> ATTN_INLINE void scale_row(T* out, Sum<T> factor, const Sum<T>* x, int64_t n) {
  for_lanes<Sum<T>>(n, [&](int64_t i, auto w) { put(out + i, get(x + i, w) * factor, w); });
}

// m = max(m, x)
template <class T> ATTN_INLINE void max_row(Sum<T>* m, const T* x, int64_t n) {
  for_lanes<Sum<T>>(n, [&](int64_t i, auto w) { put(m + i, max_or_nan(get(m + i, w), get(x + i, w)), w); });
}

// One row after the other, as they lie in memory, each fetched this many bytes before its turn: from memory, that is up
// to twice as fast as several rows at once, though m or sum is read and written once a row (both stay in L1).
constexpr int64_t kStreamAhead = 16 << 10;

// Calls f(row, channel, vector of the row, Whole or Part) for all rows and channels.
template <class T, class F> ATTN_INLINE void stream_rows(const T* const* rows, int64_t count, int64_t n, F&& f) {
  if (count == 0 || n == 0) return;
  const int64_t fitting = kStreamAhead / (n * int64_t{sizeof(T)}), ahead = fitting < 1    ? 1
                                                                           : fitting > 64 ? 64
                                                                                          : fitting;
  // Past the last row, what follows at the same distance is fetched: often the rows that are asked for next.
  const auto address = [&](int64_t r) { return reinterpret_cast<uintptr_t>(rows[r]); };
  const uintptr_t last = address(count - 1), step = count > 1 ? last - address(count - 2) : 0;
  for (int64_t r = 0; r < count; ++r) {
    const T* x = rows[r];
    const int64_t past = r + ahead - count;
    const uintptr_t fetched = past < 0 ? address(r + ahead) : last + (past + 1) * step;
    for_lanes<Sum<T>>(n, [&](int64_t i, auto w) {
      __builtin_prefetch(reinterpret_cast<const void*>(fetched + i * sizeof(T)));
      f(r, i, get(x + i, w), w);
    });
  }
}

// m = max over rows
template <class T> inline void max_rows(Sum<T>* m, const T* const* rows, int64_t count, int64_t n) {
  stream_rows<T>(rows, count, n,
                 [&](int64_t, int64_t i, auto x, auto w) { put(m + i, max_or_nan(get(m + i, w), x), w); });
}

// The same, and at = number[r] of the first row r that is greater than what m held before it.
template <class T>
inline void max_rows_at(Sum<T>* m, Sum<T>* at, const Sum<T>* number, const T* const* rows, int64_t count, int64_t n) {
  stream_rows<T>(rows, count, n, [&](int64_t r, int64_t i, auto x, auto w) {
    const auto top = get(m + i, w);
    put(at + i, x > top ? splat(number[r]) : get(at + i, w), w);
    put(m + i, max_or_nan(top, x), w);
  });
}

// sum += rows, in their order
template <class T> inline void sum_rows(Sum<T>* sum, const T* const* rows, int64_t count, int64_t n) {
  stream_rows<T>(rows, count, n, [&](int64_t, int64_t i, auto x, auto w) { put(sum + i, get(sum + i, w) + x, w); });
}

// ---- results larger than the cache -----------------------------------------------------------------------------

// From here on, writing around the cache saves reading each line before it is overwritten, and what would be evicted
// is of no use to the next op anyway.
constexpr int64_t kStreamBytes = 16 << 20;

#if defined(__x86_64__)
#if ATTN_VBYTES == 64 && defined(__AVX512F__)
constexpr int64_t kStreamWidth = 64;  // whole lines
ATTN_INLINE void stream_vector(const char* from, char* to) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#else
constexpr int64_t kStreamWidth = 16;
ATTN_INLINE void stream_vector(const char* from, char* to) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#endif
#endif

// store_as around the cache. `to` is aligned to what is written.
template <class T, class V> ATTN_INLINE void stream_as(T* to, V x) {
#if defined(__x86_64__)
  constexpr int64_t kBytes = sizeof(T) * sizeof(x) / sizeof(x[0]);
  T copy[sizeof(x) / sizeof(x[0])];  // a register, once compiled
  store_as(copy, x);
  char *from = reinterpret_cast<char*>(copy), *at = reinterpret_cast<char*>(to);
  if constexpr (kBytes % kStreamWidth == 0) {
    ATTN_UNROLL
    for (int64_t i = 0; i < kBytes; i += kStreamWidth) stream_vector(from + i, at + i);
#if defined(__AVX__)
  } else if constexpr (kBytes == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(at), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#endif
  } else {
    static_assert(kBytes == 8);
    long long bits;
    std::memcpy(&bits, from, sizeof bits);
    _mm_stream_si64(reinterpret_cast<long long*>(at), bits);
  }
#else
  store_as(to, x);
#endif
}

// Where a work item puts its result rows: straight to memory, or by way of a scratch row and streaming stores.
template <class T> class RowWriter {
 public:
  // `scratch`: a row of n elements, used if `stream`; none for those who use write alone.
  RowWriter(bool stream, T* scratch, int64_t n) : stream_(stream), scratch_(scratch), n_(n) {}
  ~RowWriter() {
#if defined(__x86_64__)
    if (stream_) _mm_sfence();
#endif
  }
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;

  bool streams() const { return stream_; }

  // Where to compute the row that goes to `out`.
  T* row(T* out) const { return stream_ ? scratch_ : out; }

  // The row is complete.
  void done(T* out) const {
    if (stream_) copy(scratch_, out);
  }

  // Can `block` write rows of which the first starts at `out`?
  bool takes_blocks(const T* out) const {
    constexpr uintptr_t bytes = Lanes<Sum<T>>::n * sizeof(T);
    return !stream_ || (reinterpret_cast<uintptr_t>(out) | n_ * sizeof(T)) % bytes == 0;
  }

  // Some vectors of R rows that follow each other, from registers. `out`: where the first row's go.
  template <int R, int V> ATTN_INLINE void block(T* out, const vec<Sum<T>> (&x)[R][V]) const {
    constexpr int L = Lanes<Sum<T>>::n;
    const int64_t n = n_;
    if (stream_) {
      ATTN_UNROLL
      for (int r = 0; r < R; ++r) {
        ATTN_UNROLL
        for (int v = 0; v < V; ++v) stream_as(out + r * n + v * L, x[r][v]);
      }
    } else {
      ATTN_UNROLL
      for (int r = 0; r < R; ++r) {
        ATTN_UNROLL
        for (int v = 0; v < V; ++v) store_as(out + r * n + v * L, x[r][v]);
      }
    }
  }

  // One vector, where blocks can be written.
  ATTN_INLINE void vector(T* out, vec<Sum<T>> x) const {
    if (stream_) stream_as(out, x);
    else store_as(out, x);
  }

  // A row that lies elsewhere.
  void write(const T* row, T* out) const {
    if (stream_) copy(row, out);
    else std::memcpy(static_cast<void*>(out), row, n_ * sizeof(T));
  }

 private:
  void copy(const T* row, T* out) const {
#if defined(__x86_64__)
    const char* from = reinterpret_cast<const char*>(row);
    char* to = reinterpret_cast<char*>(out);
    int64_t bytes = n_ * static_cast<int64_t>(sizeof(T));
    const int64_t head = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) & (kStreamWidth - 1));
    if (head >= bytes) {
      std::memcpy(to, from, bytes);
      return;
    }
    std::memcpy(to, from, head);
    int64_t i = head;
    for (; i + kStreamWidth <= bytes; i += kStreamWidth) stream_vector(from + i, to + i);
    std::memcpy(to + i, from + i, bytes - i);
#else
    std::memcpy(static_cast<void*>(out), row, n_ * sizeof(T));
#endif
  }

  bool stream_;
  T* scratch_;
  int64_t n_;
};

}  // namespace pool
ATTN_NAMESPACE_END
