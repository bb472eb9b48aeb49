// The 64 query rows of a warpgroup against key tiles, on wgmma: products, masks, online softmax, values. Registers lie
// as those of WarpAttend, so rows, state and the end of a row are its own.
#pragma once

#include "cuda/sm80/warp_attend.h"
#include "cuda/sm90/key_pieces.h"

namespace attn::cuda {

constexpr int kGroupRows = 64;

// Rows of kDim elements as panels of 64 (seam_sm90.h).
template <class T, int kDim, int kRows> struct alignas(1024) Panels {
  static constexpr int kCount = kDim / seam::kPanelElements;
  SharedRows<T, seam::kPanelElements, kRows> panel[kCount];

  // 16 features from 16 d of the rows from `row`.
  ATTN_DEVICE seam::OperandK along(int row, int d) { return {panel[d / 4].chunk + 8 * row + 2 * (d % 4)}; }
  // All features of 16 rows from 16 k.
  ATTN_DEVICE seam::OperandMn across(int k) {
    return {panel[0].chunk + 8 * 16 * k, static_cast<int>(sizeof(panel[0]))};
  }
};

// Starts s = products, along features, of 64 rows of A from `first` with the kCount rows of B.
template <class T, int kDim, int kCount, class A, class B>
ATTN_DEVICE void start_dots(A& a, int32_t first, B& b, float (&s)[kCount / 8][4]) {
  seam::group_begin(s);
  ATTN_UNROLL
  for (int d = 0; d < kDim / 16; ++d) seam::group_mma<T, kCount>(s, a.along(first, d), b.along(0, d), d > 0);
  seam::group_commit();
}
// Starts out += a times the rows of B.
template <class T, int kDim, int kSteps, class B>
ATTN_DEVICE void start_product(const uint32_t (&a)[kSteps][4], B& b, float (&out)[kDim / 8][4]) {
  seam::group_begin(out);
  ATTN_UNROLL
  for (int k = 0; k < kSteps; ++k) seam::group_mma<T, kDim>(out, a[k], b.across(k));
  seam::group_commit();
}

template <int kGroups> ATTN_DEVICE bool all_finite(const float (&x)[kGroups][4]) {
  bool all = true;
  ATTN_UNROLL
  for (int n = 0; n < kGroups; ++n) {
    ATTN_UNROLL
    for (int e = 0; e < 4; ++e) all &= std::fabs(x[n][e]) < INFINITY;
  }
  return all;
}

// What a block of kThreads copies: the rows of an item (past its last one, zeros).
template <int kThreads, class T, int kDim, int kRows>
ATTN_DEVICE void load_panels(const View4& x, const RowItem& item, Panels<T, kDim, kRows>& to) {
  const bool aligned = rows_aligned<T>(x);
  ATTN_UNROLL
  for (int d = 0; d < Panels<T, kDim, kRows>::kCount; ++d) {
    const T* from = static_cast<const T*>(x.data) + item.seq.batch * x.batch + seam::kPanelElements * d;
    to.panel[d].template load<kThreads>(from, seam::kPanelElements, aligned,
                                        [&](int r) { return r < item.rows ? row_offset(x, item, r) : -1; });
  }
}
// After which its products may read it.
template <int kThreads, int kBarrier> ATTN_DEVICE void publish_copies() {
  seam::copy_commit();
  seam::copy_wait<0>();
  seam::publish_shared();
  seam::sync_named(kBarrier, kThreads);
}

// Warpgroups of a block that have rows.
ATTN_DEVICE int groups_with_rows(const RowItem& item) { return item.rows > kGroupRows ? 2 : 1; }

template <class T, int kDim> struct GroupAttend {
  using Warp = WarpAttend<T, kDim, kGroupKeys>;
  using State = typename Warp::State;  // top: of products, not scaled
  using Scores = typename Warp::Scores;
  using Weights = uint32_t[kGroupKeys / 16][4];
  using Queries = Panels<T, kDim, 2 * kGroupRows>;
  using Keys = Panels<T, kDim, kGroupKeys>;

  typename Warp::Row rows[2];
  RowsReach reach;
  int32_t end;  // keys_end
  float scale;  // > 0, times log2 e

  ATTN_DEVICE void open(const AttendParams& p, const RowItem& item, int32_t first) {
    reach = RowsReach::of(p, item, first, min_i32(first + kGroupRows, item.rows));
    const int32_t mine = first + seam::warp() % 4 * kWarpRows;
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) rows[i] = Warp::row(p, item, min_i32(Warp::row_of(mine, i), item.rows - 1));
    end = keys_end(p, item.group);
    scale = static_cast<float>(p.scale * kLog2e);
  }

  // Starts s = products of the rows from `first` with the keys of a tile.
  ATTN_DEVICE static void start_products(Queries& q, int32_t first, Keys& k, Scores& s) {
    start_dots<T, kDim, kGroupKeys>(q, first, k, s);
  }
  // Starts out += weights times values.
  ATTN_DEVICE static void start_values(const Weights& a, Keys& v, float (&out)[kDim / 8][4]) {
    start_product<T, kDim>(a, v, out);
  }

  ATTN_DEVICE bool sees_all(const PieceTile& t) const {
    const int32_t hi = min_i32(reach.first.hi, end - 1);
    bool all = true;
    ATTN_UNROLL
    for (int h = 0; h < kTilePieces; ++h)
      all &= t.word[h] < 0 && t.start[h] >= max_i32(reach.last.lo, 0) && t.start[h] <= hi - (kPieceKeys - 1);
    return all;
  }

  // Products of what a row doesn't see become -inf.
  ATTN_DEVICE void mask(const AttendParams& p, const PieceTile& t, Scores& s) const {
    const int column = 2 * (seam::lane() % 4);
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      ATTN_UNROLL
      for (int w = 0; w < kGroupKeys / 32; ++w) {
        const int h = w / 2;
        const int32_t key = t.start[h] + w % 2 * 32, hi = min_i32(rows[i].window.hi, end - 1);
        uint32_t keep = t.start[h] < 0 ? 0 : visible_word(key, rows[i].window.lo, hi);
        if (t.word[h] >= 0 && keep) keep &= static_cast<uint32_t>(p.layout.bits[t.word[h] + rows[i].words + w % 2]);
        keep >>= column;
        ATTN_UNROLL
        for (int n = 0; n < 4; ++n) {
          ATTN_UNROLL
          for (int c = 0; c < 2; ++c)
            if (!(keep >> (8 * n + c) & 1)) s[4 * w + n][2 * i + c] = -INFINITY;
        }
      }
    }
  }

  // Products -> weights, and what the accumulated values are then to be multiplied by. A row that has seen no key keeps
  // top = -inf, and its weights are exactly 0.
  ATTN_DEVICE void softmax(Scores& s, State& state, float (&alpha)[2]) const {
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      float top = state.top[i];
      ATTN_UNROLL
      for (int n = 0; n < Warp::kKeyGroups; ++n) top = std::fmax(top, std::fmax(s[n][2 * i], s[n][2 * i + 1]));
      top = std::fmax(top, seam::shuffle_xor(top, 1));
      top = std::fmax(top, seam::shuffle_xor(top, 2));
      const float reference = top == -INFINITY ? 0 : top * scale;
      alpha[i] = seam::exp2_fast(state.top[i] * scale - reference);
      state.top[i] = top;
      float sum = 0;
      ATTN_UNROLL
      for (int n = 0; n < Warp::kKeyGroups; ++n) {
        ATTN_UNROLL
        for (int c = 2 * i; c < 2 * i + 2; ++c) {
          s[n][c] = seam::exp2_fast(s[n][c] * scale - reference);
          sum += s[n][c];
        }
      }
      state.sum[i] = state.sum[i] * alpha[i] + sum;
    }
  }

  ATTN_DEVICE static void multiply(State& state, const float (&alpha)[2]) {
    ATTN_UNROLL
    for (int n = 0; n < Warp::kFeatureGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) state.out[n][e] *= alpha[e / 2];
    }
  }

  ATTN_DEVICE static void take_weights(const Scores& s, Weights& a) {
    ATTN_UNROLL
    for (int k = 0; k < kGroupKeys / 16; ++k) Products<T>::pack(a[k], s, k);
  }
};

}  // namespace attn::cuda
