// The product every linear-time mixer is made of, one chunk of tokens at a time. For rows a_t, b_t of `inner` features
// and c_t of `outer` features,
//
//   out_t = sum_{j <= t} (a_t . b_j) c_j        state = sum_j b_j (x) c_j
//
// is a masked product inside a chunk plus a_t times the state before it. The forward pass takes (a, b, c) = (phi(q),
// phi(k), v); the gradients are the same product with other roles, in reversed time where a sum runs over later tokens.
//
// With operands as panels (micro.h), [a transposed; scores] times [state; c] is one matrix product: the state and the
// rows c lie in one array, the panel of a and the strip of scores in another.
#pragma once

#include "cpu/pack.h"
#include "cpu/row_math.h"
#include "cpu/tile_operand.h"
#include "cpu/transpose.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN
namespace scan {

constexpr int64_t kChunk = 64;  // tokens: the masked product costs chunk / 2 a token, the state 2 * inner

// T: operand type of micro.h. Rows that callers fill are of the accumulation type, padded with zeros to ld_in, ld_out.
template <class T> class ScanProduct {
 public:
  using A = Acc<T>;
  static constexpr int L = kLanes<T>;
  static constexpr int W = kPanel<T>;
  static constexpr bool kPairs = kPairRows<T>;

  int64_t inner, outer, ld_in, ld_out, depth;
  A *a, *b, *c;  // [chunk][ld]: what callers fill
  A* out;        // [chunk][ld_out]
  A* mass;       // [chunk]: sum_{j <= t} a_t . b_j, where asked for

  ScanProduct(int64_t inner_, int64_t outer_, Carve& carve) : inner(inner_), outer(outer_), depth(depth_of<T>(inner_)) {
    ld_in = round_up_lanes<T>(inner);
    ld_out = round_up_lanes<T>(outer);
    panel_size_ = (depth + depth_of<T>(kChunk)) * W;
    a = carve.take<A>(kChunk * ld_in);
    b = carve.take<A>(kChunk * ld_in);
    out = carve.take<A>(kChunk * ld_out);
    mass = carve.take<A>(kChunk);
    right_ = carve.take<T>((depth + depth_of<T>(kChunk)) * ld_out);
    panels_ = carve.take<T>(kChunk / W * panel_size_);
    ones_ = carve.take<A>(ld_in + W);
    if constexpr (kPairs) {
      c = carve.take<A>(kChunk * ld_out);
      b_rows_ = carve.take<T>(kChunk * depth_of<T>(ld_in));
      a_rows_ = carve.take<T>(kChunk * (depth_of<T>(ld_in) + L));
      b_columns_ = carve.take<T>(depth_of<T>(kChunk) * ld_in);
      strip_ = carve.take<A>(kChunk * W);
      mass_rows_ = carve.take<T>(2 * depth_of<T>(ld_in));
    } else {
      c = right_ + depth * ld_out;
      b_rows_ = b;
      b_columns_ = b;
    }
    if (carve.base) {
      for (int64_t i = 0; i < ld_in + W; ++i) ones_[i] = 1;
    }
  }

  // Elements of a state: [inner, padded][ld_out].
  int64_t state_size() const { return ld_in * ld_out; }

  // Takes the n rows of b and c.
  void set_keys(int64_t n) {
    n_ = n;
    bad_count_ = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (!row_is_finite(c + i * ld_out, ld_out)) bad_[bad_count_++] = static_cast<int16_t>(i);
    }
    if constexpr (kPairs) {
      const int64_t ld_pairs = depth_of<T>(ld_in);
      for (int64_t i = 0; i < n; ++i) pair_row(b + i * ld_in, b_rows_ + i * ld_pairs);
      if (n % 2) std::memset(static_cast<void*>(b_rows_ + n * ld_pairs), 0, ld_pairs * sizeof(T));
      for (int64_t i = 0; i < n; i += 2) {
        const bool both = i + 1 < n;
        pair_rows(b + i * ld_in, both ? b + (i + 1) * ld_in : nullptr, ld_in, b_columns_ + i / 2 * ld_in);
        pair_rows(c + i * ld_out, both ? c + (i + 1) * ld_out : nullptr, ld_out, right_ + (depth + i / 2) * ld_out);
      }
    }
  }

  // Makes b rows that lie elsewhere, padded alike.
  void point_keys(A* rows) {
    b = rows;
    if constexpr (!kPairs) b_rows_ = b_columns_ = rows;
  }

  // Takes the n rows of a.
  void set_queries(int64_t n) {
    for (int64_t first = 0; first < n; first += W) {
      const int64_t rows = n - first < W ? n - first : W, width = rows <= L ? L : W;
      T* panel = panels_ + first / W * panel_size_;
      if constexpr (kPairs) {
        const int64_t ld = depth_of<T>(ld_in) + L;  // transpose_panel reads past the depth
        for (int64_t i = 0; i < rows; ++i) pair_row(a + (first + i) * ld_in, a_rows_ + i * ld);
        transpose_panel<T>(a_rows_, ld, rows, depth, panel, width);
      } else {
        transpose_panel<T>(a + first * ld_in, ld_in, rows, depth, panel, width);
      }
    }
  }

  // Takes the state before the chunk, as the sum of two (`more` may be null).
  void set_state(const A* state, const A* more) {
    if constexpr (kPairs) {
      for (int64_t f = 0; f < depth; ++f) {
        const int64_t lo = 2 * f * ld_out, hi = lo + ld_out;
        for (int64_t x = 0; x < ld_out; x += L) {
          vec<A> u = load(state + lo + x), w = 2 * f + 1 < inner ? load(state + hi + x) : vec<A>{};
          if (more) {
            u += load(more + lo + x);
            if (2 * f + 1 < inner) w += load(more + hi + x);
          }
          store(right_ + f * ld_out + x, make_pairs(u, w));
        }
      }
    } else {
      const int64_t n = inner * ld_out;
      if (!more) {
        std::memcpy(right_, state, n * sizeof(A));
        return;
      }
      for (int64_t x = 0; x < n; x += L) store(right_ + x, load(state + x) + load(more + x));
    }
  }

  // out = a state + the product with the chunk's own rows; without the state, and added to out, where asked for.
  void multiply(int64_t n, bool state = true, bool add = false) {
    if (!add) std::memset(out, 0, n * ld_out * sizeof(A));
    for_panels(n, state, nullptr);
  }

  // The same, and mass_t = a_t . (z + sum_{j <= t} b_j) for sums z of `inner` features padded to ld_in.
  void multiply_with_mass(int64_t n, const A* z) {
    std::memset(out, 0, n * ld_out * sizeof(A));
    for_panels(n, true, z);
  }

  // out = a state, for the n rows of a as they were filled: no set_queries, no keys.
  void apply_state(int64_t n) {
    if constexpr (kPairs) {
      const int64_t ld = depth_of<T>(ld_in);
      for (int64_t i = 0; i < n; ++i) pair_row(a + i * ld_in, a_rows_ + i * ld);
      multiply_rows<T>(a_rows_, ld, n, depth, right_, ld_out, ld_out, out, ld_out);
    } else {
      multiply_rows<T>(a, ld_in, n, inner, right_, ld_out, ld_out, out, ld_out);
    }
  }

  // state += b^T c over the chunk. Never inlined: every caller must round in the same way.
  __attribute__((noinline)) void update(A* state) const {
    acc_panel<T>(b_columns_, ld_in, inner, depth_of<T>(n_), right_ + depth * ld_out, ld_out, ld_out, ones_, state,
                 ld_out);
  }

  // For sums that are complete before they are used (nothing masked, no scores): state += rows^T c over n rows of
  // features that lie elsewhere, `ld` apart, as A or, where operands are pairs, as bf16, and rows c of which value(i,
  // x) gives the vector at x; `between` is called update_calls() times on the way ...
  template <class F, class Value, class Between>
  void update_with(const F* rows, int64_t ld, int64_t n, Value&& value, A* state, Between&& between) {
    const T* columns = nullptr;
    int64_t width = ld;
    T* right = right_ + depth * ld_out;
    if constexpr (kPairs) {
      for (int64_t i = 0; i < n; i += 2) {
        const bool both = i + 1 < n;
        pack_row_pair<T, F>(rows + i * ld, both ? rows + (i + 1) * ld : nullptr, ld_in, b_columns_ + i / 2 * ld_in,
                            ld_in);
        for (int64_t x = 0; x < ld_out; x += L) {
          store(right + i / 2 * ld_out + x, make_pairs(value(i, x), both ? value(i + 1, x) : vec<A>{}));
        }
      }
      columns = b_columns_;
      width = ld_in;
    } else {
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t x = 0; x < ld_out; x += L) store(right + i * ld_out + x, value(i, x));
      }
      columns = rows;
    }
    acc_panel<T>(columns, width, inner, depth_of<T>(n), right, ld_out, ld_out, ones_, state, ld_out, between);
  }
  int64_t update_calls() const {
    return (inner + kAccBlock<T> - 1) / kAccBlock<T> * ((ld_out / L + kAccVecs - 1) / kAccVecs);
  }
  // ... and rows . state by blocks: f(block, first row, first column) (for_product_blocks), at least apply_calls(n)
  // times.
  template <class F, class Write> void apply_state_to(const F* rows, int64_t ld, int64_t n, Write&& f) const {
    for_product_blocks<T>(reinterpret_cast<const T*>(rows), ld / kPair<T>, n, depth, right_, ld_out, ld_out, f);
  }
  int64_t apply_calls(int64_t n) const {
    return (n + kDotRows - 1) / kDotRows * ((ld_out + kPanelVecs * L - 1) / (kPanelVecs * L));
  }

 private:
  int64_t n_ = 0, panel_size_;
  int bad_count_ = 0;
  int16_t bad_[kChunk];
  T* right_;   // [depth + chunk][ld_out]: state, then c
  T* panels_;  // for each W rows of a: [depth + chunk][W]: a transposed, then scores
  T *b_rows_, *b_columns_;
  T *a_rows_ = nullptr, *mass_rows_ = nullptr;
  A *ones_, *strip_ = nullptr;

  // A row of b or a as pairs of neighbours: bf16 in their order.
  void pair_row(const A* row, T* to) const {
    if constexpr (kPairs) {
      for (int64_t x = 0; x < ld_in; x += L) store_as(reinterpret_cast<bf16*>(to) + x, load(row + x));
    }
  }
  static void pair_rows(const A* lo, const A* hi, int64_t n, T* to) {
    if constexpr (kPairs) {
      for (int64_t x = 0; x < n; x += L) store(to + x, make_pairs(load(lo + x), hi ? load(hi + x) : vec<A>{}));
    }
  }

  // Zeroes the scores of keys after the row: key j is seen by lanes >= j - first.
  template <int NV> void mask(A* scores, int64_t first, int64_t keys) const {
    using M = vmask<A>;
    M lane{};
    for (int i = 0; i < L; ++i) lane[i] = i;
    for (int64_t j = first; j < keys; ++j) {
      for (int v = 0; v < NV; ++v) {
        A* at = scores + (j * NV + v) * L;
        const M seen = lane >= static_cast<std::remove_reference_t<decltype(lane[0])>>(j - first - v * L);
        store(at, seen ? load(at) : vec<A>{});
      }
    }
  }

  void for_panels(int64_t n, bool state, const A* z) {
    for (int64_t first = 0; first < n; first += W) {
      if (n - first <= L) panel<1>(first, n - first, state, z);
      else panel<2>(first, n - first < W ? n - first : W, state, z);
    }
  }

  template <int NV> void panel(int64_t first, int64_t rows, bool state, const A* z) {
    T* p = panels_ + first / W * panel_size_;
    A* o = out + first * ld_out;
    constexpr int64_t width = NV * L;
    const int64_t state_depth = state ? depth : 0;
    const T* left = p + (depth - state_depth) * width;
    const T* right = right_ + (depth - state_depth) * ld_out;
    int64_t keys = first + rows < n_ ? first + rows : n_;
    if (kPairs) keys += keys % 2;
    A* scores;
    if constexpr (kPairs) scores = strip_;
    else scores = p + depth * width;
    vec<A> top[NV] = {};
    dot_panel<T, NV>(b_rows_, depth_of<T>(ld_in), keys, depth, p, Unscaled{}, scores, top);
    mask<NV>(scores, first, keys);
    if (z) sum_mass<NV>(first, keys, p, scores, z);
    if constexpr (kPairs) {
      for (int64_t j = 0; j < keys; j += 2) {
        for (int v = 0; v < NV; ++v) {
          store(p + (depth + j / 2) * width + v * L,
                make_pairs(load(scores + (j * NV + v) * L), load(scores + ((j + 1) * NV + v) * L)));
        }
      }
    }
    if (bad_count_ == 0) {
      acc_panel<T>(left, width, rows, state_depth + depth_of<T>(keys), right, ld_out, ld_out, ones_, o, ld_out);
    } else {
      panel_with_bad_rows(left, width, first, rows, state_depth, keys, scores, o);
    }
  }

  template <int NV> void sum_mass(int64_t first, int64_t keys, const T* p, const A* scores, const A* z) {
    A own[2 * W];
    vec<A> top[NV] = {};
    int64_t z_rows = 1;
    if constexpr (kPairs) {  // z as a sum of two bf16: it is large against single features
      A* rest = a;           // rows of a are in their panels by now
      for (int64_t f = 0; f < ld_in; ++f) rest[f] = z[f] - to_float(From<bf16>::of(z[f]));
      pair_row(z, mass_rows_);
      pair_row(rest, mass_rows_ + depth_of<T>(ld_in));
      z_rows = 2;
      dot_panel<T, NV>(mass_rows_, depth_of<T>(ld_in), 2, depth, p, Unscaled{}, own, top);
    } else {
      dot_panel<T, NV>(z, ld_in, 1, depth, p, Unscaled{}, own, top);
    }
    for (int v = 0; v < NV; ++v) {
      vec<A> sum{};
      for (int64_t j = 0; j < keys; ++j) sum += load(scores + (j * NV + v) * L);
      for (int64_t r = 0; r < z_rows; ++r) sum += load(own + (r * NV + v) * L);
      store(mass + first + v * L, sum);
    }
  }

  // 0 * NaN is NaN: rows of c that aren't finite are kept out of the matrix product and added to the rows that see
  // them.
  void panel_with_bad_rows(const T* left, int64_t width, int64_t first, int64_t rows, int64_t state_depth, int64_t keys,
                           const A* scores, A* o) {
    T* right = right_ + (depth - state_depth) * ld_out;
    T* own = right_ + depth * ld_out;
    const int64_t size = depth_of<T>(n_ + kChunk % 2) * ld_out;
    T* saved = new T[size];
    std::memcpy(static_cast<void*>(saved), own, size * sizeof(T));
    for (int i = 0; i < bad_count_; ++i) clear_row(own, ld_out, bad_[i]);
    acc_panel<T>(left, width, rows, state_depth + depth_of<T>(keys), right, ld_out, ld_out, ones_, o, ld_out);
    std::memcpy(static_cast<void*>(own), saved, size * sizeof(T));
    delete[] saved;
    for (int i = 0; i < bad_count_; ++i) {
      const int64_t j = bad_[i];
      for (int64_t r = j > first ? j - first : 0; r < rows; ++r) {
        const A weight = scores[j * width + r];
        for (int64_t x = 0; x < outer; ++x) o[r * ld_out + x] += weight * c[j * ld_out + x];
      }
    }
  }
};

}  // namespace scan
ATTN_NAMESPACE_END
