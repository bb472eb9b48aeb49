// Sixteen query rows of a warp against keys of a tile, on tensor cores: products, logits, online softmax, values. bf16,
// f16 and float32 (products.h), fp32 accumulation.
#pragma once

#include "cuda/key_tile.h"
#include "cuda/sm80/products.h"
#include "cuda/sm80/shared_rows.h"

namespace attn::cuda {

constexpr int kWarpRows = 16;

// cap tanh(x / cap)
ATTN_DEVICE float soft_cap(float x, float cap) {
  const float f = seam::exp2_fast(std::fabs(x) / cap * static_cast<float>(-2 * kLog2e));
  return std::copysign(cap * ((1 - f) / (1 + f)), x);
}

// What 16 rows of a warp have accumulated, each in four threads.
template <int kDim> struct AttendState {
  static constexpr int kFeatureGroups = kDim / 8;
  float out[kFeatureGroups][4];  // [][2 i + c]: row i, feature 8 group + 2 (lane % 4) + c
  float top[2], sum[2];          // sum: over the thread's own columns

  ATTN_DEVICE void clear() {
    ATTN_UNROLL
    for (int n = 0; n < kFeatureGroups; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0;
    top[0] = top[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
  // The sums of whole rows, in all four threads that share one.
  ATTN_DEVICE void add_up() {
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      sum[i] += seam::shuffle_xor(sum[i], 1);
      sum[i] += seam::shuffle_xor(sum[i], 2);
    }
  }
};

// kDim: features of a row in shared memory. kKeys: keys of a tile that the warp takes, a multiple of 16.
template <class T, int kDim, int kKeys> struct WarpAttend {
  static constexpr int kKeyGroups = kKeys / 8, kFeatureGroups = kDim / 8;
  using Params = AttendParams;
  using Product = Products<T>;
  static constexpr int kDepth = Product::kDepth, kSteps = kKeys / kDepth;

  // The calling thread's two rows, g and g + 8 of its warp's 16 with g = lane / 4; lane % 4 chooses columns. Rows past
  // the item's repeat its last one and are not written.
  struct Row {
    RowWindow window;
    int32_t segment, words;  // words: offset of the row's words from those of row 0 in a tile of bits
  };
  using State = AttendState<kDim>;
  using Scores = float[kKeyGroups][4];

  // Of 16 rows from `first`, the calling thread's i-th.
  ATTN_DEVICE static int32_t row_of(int32_t first, int i) { return first + seam::lane() / 4 + 8 * i; }

  ATTN_DEVICE static Row row(const Params& p, const RowItem& item, int32_t r) {
    const int32_t* ids = p.segment_q.data;
    const int32_t words = static_cast<int32_t>((p.layout.block_k + 31) / 32), query = item.query_of(r);
    const int64_t block = p.schedule == ScheduleKind::layout ? item.group.block_row * p.layout.block_q : 0;
    return {row_window(p.rule, row_position(p, item.group.queries, item.group.keys, query)),
            ids ? ids[item.seq.batch * p.segment_q.batch + (item.seq.q_token + query) * p.segment_q.token] : 0,
            static_cast<int32_t>(query - block) * words};
  }

  ATTN_DEVICE static void load_rows(const Params& p, const RowItem& item, int32_t first, Row (&rows)[2],
                                    RowsReach& reach) {
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) rows[i] = row(p, item, min_i32(row_of(first, i), item.rows - 1));
    if (!p.segment_q.data) return;
    reach.segment_low = min_i32(rows[0].segment, rows[1].segment);
    reach.segment_high = max_i32(rows[0].segment, rows[1].segment);
    warp_range(reach.segment_low, reach.segment_high);
  }

  // Products of the 16 rows from q_row with the keys from `key`, over kCount features from `feature`.
  template <int kCount, class Queries, class Keys>
  ATTN_DEVICE static void multiply_features(Queries& q, int q_row, Keys& k, int key, int feature, Scores& s) {
    ATTN_UNROLL
    for (int n = 0; n < kKeyGroups; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
    add_products<kKeyGroups, kCount>(q, q_row, k, key, feature, s);
  }
  template <class Queries, class Keys>
  ATTN_DEVICE static void multiply_keys(Queries& q, int q_row, Keys& k, int key, Scores& s) {
    constexpr int kCount = Product::kSplit ? 64 : kDim;
    multiply_features<kCount>(q, q_row, k, key, 0, s);
    ATTN_ROLLED
    for (int feature = kCount; feature < kDim; feature += kCount) {
      Scores more;
      multiply_features<kCount>(q, q_row, k, key, feature, more);
      ATTN_UNROLL
      for (int n = 0; n < kKeyGroups; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) s[n][e] += more[n][e];
      }
    }
  }

  template <class Tile> ATTN_DEVICE static bool visible_key(const Params& p, const Tile& t, int key, const Row& row) {
    bool keep = visible(t.position[key], row.window.lo, row.window.hi, row.window.cap, t.exempt[key]);
    if (p.segment_k.data) keep &= t.segment[key] == row.segment;
    if (t.word[key] >= 0) keep = keep && (p.layout.bits[t.word[key] + row.words] >> t.bit[key] & 1);
    return keep;
  }

  // Products -> logits in base-2 units, -inf where the row doesn't see the key.
  template <class Tile>
  ATTN_DEVICE static void modify(const Params& p, const Tile& t, int first_key, const Row (&rows)[2], bool masked,
                                 Scores& s) {
    const float scale = static_cast<float>(p.scale * kLog2e), cap = static_cast<float>(p.softcap * kLog2e);
    ATTN_UNROLL
    for (int n = 0; n < kKeyGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = first_key + 8 * n + 2 * (seam::lane() % 4) + e % 2;
        float x = s[n][e] * scale;
        if (cap > 0) x = soft_cap(x, cap);
        if (p.key_log_weight.data) x += t.weight[key];
        if (masked && !visible_key(p, t, key, rows[e / 2])) x = -INFINITY;
        s[n][e] = x;
      }
    }
  }

  // Logits -> weights. A row that has seen no key keeps top = -inf, and its weights are exactly 0.
  ATTN_DEVICE static void softmax(Scores& s, State& state) {
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      float top = state.top[i];
      ATTN_UNROLL
      for (int n = 0; n < kKeyGroups; ++n) top = std::fmax(top, std::fmax(s[n][2 * i], s[n][2 * i + 1]));
      top = std::fmax(top, seam::shuffle_xor(top, 1));
      top = std::fmax(top, seam::shuffle_xor(top, 2));
      const float reference = top == -INFINITY ? 0 : top, alpha = seam::exp2_fast(state.top[i] - reference);
      state.top[i] = top;
      state.sum[i] *= alpha;
      ATTN_UNROLL
      for (int n = 0; n < kKeyGroups; ++n) {
        ATTN_UNROLL
        for (int c = 2 * i; c < 2 * i + 2; ++c) {
          s[n][c] = seam::exp2_fast(s[n][c] - reference);
          state.sum[i] += s[n][c];
        }
      }
      ATTN_UNROLL
      for (int n = 0; n < kFeatureGroups; ++n) {
        state.out[n][2 * i] *= alpha;
        state.out[n][2 * i + 1] *= alpha;
      }
    }
  }

  using Weights = typename Product::A[kSteps];  // as operands
  ATTN_DEVICE static void take_weights(const Scores& s, Weights& a) {
    ATTN_UNROLL
    for (int k = 0; k < kSteps; ++k) a[k] = Product::operand(s, k);
  }

  // Adds weights times the values from `key`, of kGroups groups of features from `group`.
  template <class Values, int kGroups>
  ATTN_DEVICE static void multiply_values(Values& v, int key, const Scores& s, float (&out)[kGroups][4],
                                          int group = 0) {
    if constexpr (Product::kSplit) {
      multiply_values_rounded<false>(v, key, s, out, group);
    } else {
      add_values<kGroups>(s, v, key, group, out);
    }
  }
  template <class Values> ATTN_DEVICE static void multiply_values(Values& v, int key, const Scores& s, State& state) {
    multiply_values(v, key, s, state.out);
  }

  // The same where v holds NaN or infinity that some row doesn't see: 0 times NaN is NaN, so they are taken out of the
  // product and their weights summed beside it.
  template <class Values, int kGroups>
  ATTN_DEVICE static void multiply_values_not_finite(Values& v, int key, const Scores& s, float (&out)[kGroups][4],
                                                     int group = 0) {
    if constexpr (Product::kSplit) {
      multiply_values_rounded<true>(v, key, s, out, group);
    } else {
      Weights a;
      take_weights(s, a);
      ATTN_UNROLL
      for (int n = 0; n < kGroups; n += 2) {
        uint32_t b[kSteps][2][2];
        float up[2][4] = {}, down[2][4] = {};
        ATTN_UNROLL
        for (int k = 0; k < kSteps; ++k) {
          v.operands_b_transposed(b[k][0], b[k][1], key + kDepth * k, (group + n) / 2);
          ATTN_UNROLL
          for (int i = 0; i < 2; ++i) add_not_finite(a[k], b[k][i], up[i], down[i]);
        }
        ATTN_UNROLL
        for (int i = 0; i < 2; ++i) {
          add_infinities(up[i], down[i], out[n + i]);
          // Last: what follows the final mma would be put off to the end of the function, with all its registers.
          ATTN_UNROLL
          for (int k = 0; k < kSteps; ++k) Product::add(out[n + i], a[k], b[k][i]);
        }
      }
    }
  }
  template <class Values>
  ATTN_DEVICE static void multiply_values_not_finite(Values& v, int key, const Scores& s, State& state) {
    multiply_values_not_finite(v, key, s, state.out);
  }

  // Either, for operands in two parts: tensor cores add up the keys of a tile, and their sum is rounded.
  template <bool kLook, class Values, int kGroups>
  ATTN_DEVICE static void multiply_values_rounded(Values& v, int key, const Scores& s, float (&out)[kGroups][4],
                                                  int group) {
    Weights a;
    take_weights(s, a);
    ATTN_UNROLL
    for (int n = 0; n < kGroups; n += 2) {
      uint32_t b[kSteps][2][2];
      bool found = false;
      ATTN_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        v.operands_b_transposed(b[k][0], b[k][1], key + kDepth * k, (group + n) / 2);
        ATTN_UNROLL
        for (int i = 0; kLook && i < 4; ++i) found |= (b[k][i / 2][i % 2] & kNotFinite<T>) == kNotFinite<T>;
      }
      if (kLook && seam::any(found)) {
        ATTN_UNROLL
        for (int i = 0; i < 2; ++i) {
          float up[4] = {}, down[4] = {};
          ATTN_UNROLL
          for (int k = 0; k < kSteps; ++k) add_not_finite(a[k], b[k][i], up, down);
          add_infinities(up, down, out[n + i]);
        }
      }
      ATTN_UNROLL
      for (int i = 0; i < 2; ++i) {
        float sum[4] = {};
        // The sums of four groups before must be done.
        if (n >= 4) b[0][i][0] |= seam::zero_after(out[n + i - 4]);
        ATTN_UNROLL
        for (int k = 0; k < kSteps; ++k) Product::add(sum, a[k], b[k][i]);
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) out[n + i][e] += sum[e];
      }
    }
  }

  // Takes what isn't finite out of b, and adds the weights that would have multiplied it.
  ATTN_DEVICE static void add_not_finite(const typename Product::A& a, uint32_t (&b)[2], float (&up)[4],
                                         float (&down)[4]) {
    uint32_t plus[2], minus[2];
    ATTN_UNROLL
    for (int j = 0; j < 2; ++j) split_not_finite<T>(b[j], plus[j], minus[j]);
    Product::add_where(up, a, plus);
    Product::add_where(down, a, minus);
  }
  // What add_not_finite summed is in the result: weights of infinity and of -infinity.
  ATTN_DEVICE static void add_infinities(const float (&up)[4], const float (&down)[4], float (&out)[4]) {
    ATTN_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (up[e] != 0) out[e] += INFINITY;
      if (down[e] != 0) out[e] -= INFINITY;
    }
  }
};

// Where row r of an item begins, from its batch entry.
ATTN_DEVICE int64_t row_offset(const View4& x, const RowItem& item, int32_t r) {
  return item.head_of(r) * x.head + (item.seq.q_token + item.query_of(r)) * x.token;
}

// What a block of kThreads copies: the rows of an item (past its last one, zeros), and keys of a tile.
template <int kThreads, class T, int kDim, int kRows>
ATTN_DEVICE void load_rows(const View4& x, int64_t dim, const RowItem& item, SharedRows<T, kDim, kRows>& to) {
  to.template load<kThreads>(static_cast<const T*>(x.data) + item.seq.batch * x.batch, static_cast<int>(dim),
                             rows_aligned<T>(x), [&](int r) { return r < item.rows ? row_offset(x, item, r) : -1; });
}
template <int kThreads, class T, int kDim, int kRows>
ATTN_DEVICE void load_queries(const AttendParams& p, const RowItem& item, SharedRows<T, kDim, kRows>& q) {
  load_rows<kThreads>(p.q, p.dim, item, q);
}
template <int kThreads, class T, int kDim, int kKeys>
ATTN_DEVICE void load_keys(const AttendParams& p, const RowItem& item, const KeyTile<kKeys>& t,
                           SharedRows<T, kDim, kKeys>& k, SharedRows<T, kDim, kKeys>& v) {
  k.template load<kThreads>(static_cast<const T*>(p.k.data) + item.group.head_kv * p.k.head, static_cast<int>(p.dim),
                            rows_aligned<T>(p.k), [&](int r) { return t.k_row[r]; });
  v.template load<kThreads>(static_cast<const T*>(p.v.data) + item.group.head_kv * p.v.head, static_cast<int>(p.dim_v),
                            rows_aligned<T>(p.v), [&](int r) { return t.v_row[r]; });
}

ATTN_DEVICE float row_gate(const AttendParams& p, const RowItem& item, int32_t r) {
  const View3& x = p.head_gate;
  return static_cast<const float*>(
      x.data)[item.seq.batch * x.batch + item.head_of(r) * x.head + (item.seq.q_token + item.query_of(r)) * x.token];
}

// finish_row with the row's gate. Of keys in parts, one part has the sink.
ATTN_DEVICE void finish_row_of(const AttendParams& p, const RowItem& item, int32_t r, float top, float sum, bool sink,
                               float& factor, float& lse) {
  const float logit = sink && p.sink_logits ? p.sink_logits[item.head_of(r)] * static_cast<float>(kLog2e) : -INFINITY;
  finish_row(top, sum, logit, factor, lse);
  if (p.head_gate.data) factor *= row_gate(p, item, r);
}

// Where row r lies in lse.
ATTN_DEVICE int64_t lse_index(const AttendParams& p, const RowItem& item, int32_t r) {
  return (item.seq.batch * p.heads + item.head_of(r)) * p.tq + item.seq.q_token + item.query_of(r);
}

template <class T> ATTN_DEVICE T* row_of_item(const View4& x, const RowItem& item, int32_t r) {
  return static_cast<T*>(x.data) + item.seq.batch * x.batch + row_offset(x, item, r);
}
template <class T> ATTN_DEVICE T* out_row(const AttendParams& p, const RowItem& item, int32_t r) {
  return row_of_item<T>(p.out, item, r);
}

struct alignas(8) Pair { float low, high; };

// Two neighbouring features of a row of `dim`; `pairs`: they may be written as one.
template <class T> ATTN_DEVICE void store_pair(T* out, int64_t d, int64_t dim, bool pairs, float low, float high) {
  if (pairs && d + 1 < dim) {
    if constexpr (sizeof(T) == 4) seam::store_whole(out + d, Pair{low, high});
    else seam::store_whole(out + d, seam::pack<T>(low, high));
  } else {
    if (d < dim) out[d] = seam::from_float<T>(low);
    if (d + 1 < dim) out[d + 1] = seam::from_float<T>(high);
  }
}
template <class T> ATTN_DEVICE bool stores_pairs(const View4& x) {
  return reinterpret_cast<uintptr_t>(x.data) % (2 * sizeof(T)) == 0 && (x.batch | x.head | x.token) % 2 == 0;
}

}  // namespace attn::cuda
