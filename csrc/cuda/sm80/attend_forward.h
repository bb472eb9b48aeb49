// Attention forward for bf16 and f16 on tensor cores from sm_80 on, fp32 accumulation. A block takes 128 query rows, a
// warp 16 of them. Key tiles of 64 pass through shared memory one at a time, two barriers each: one before the copies
// (the tile before is done with), one after. While they fly, warp 0 walks the schedule for the tile after.
//
// Shared memory, of a block: 2 kDim (128 + 2 * 64) bytes and 6 KiB for what masking needs: 38, 70 and 134 KiB. kDim =
// 256 is more than sm_86 and sm_89 have.
#pragma once

#include "cuda/key_tile.h"
#include "cuda/sm80/shared_rows.h"

namespace attn::cuda {

constexpr int kBlockRows = 128;
using AttendGrid = RowGrid<kBlockRows>;

// kDim: 64, 128 or 256, at least the features of q, k and v.
template <class T, int kDim> struct AttendForward {
  static constexpr int kThreads = 256, kWarps = kThreads / 32, kWarpRows = kBlockRows / kWarps;
  static constexpr int kKeyGroups = kTileKeys / 8, kFeatureGroups = kDim / 8;
  using Params = AttendParams;
  struct Shared {
    SharedRows<T, kDim, kBlockRows> q;
    SharedRows<T, kDim, kTileKeys> k, v;
    KeyTile tile[2];
    int32_t found[kWarps];  // what a warp answers to a question put to the block
    RowItem item;
    bool open;
  };

  // The calling thread's two rows, g and g + 8 of its warp's 16 with g = lane / 4; lane % 4 chooses columns. Rows past
  // the item's repeat its last one and are not written.
  struct Row {
    RowWindow window;
    int32_t segment, words;  // words: offset of the row's words from those of row 0 in a tile of bits
  };
  struct State {
    float out[kFeatureGroups][4];  // [][2 i + c]: row i, feature 8 group + 2 (lane % 4) + c
    float top[2], sum[2];          // sum: over the thread's own columns
  };
  using Scores = float[kKeyGroups][4];

  ATTN_DEVICE static const T* head(const View4& x, int64_t batch, int64_t head) {
    return static_cast<const T*>(x.data) + batch * x.batch + head * x.head;
  }
  ATTN_DEVICE static int32_t my_row(int i) { return seam::warp() * kWarpRows + seam::lane() / 4 + 8 * i; }

  ATTN_DEVICE static float gate(const Params& p, const RowItem& item, int32_t r) {
    const View3& x = p.head_gate;
    return static_cast<const float*>(
        x.data)[item.seq.batch * x.batch + item.head_of(r) * x.head + (item.seq.q_token + item.query_of(r)) * x.token];
  }

  ATTN_DEVICE static bool any_found(const Shared& shared) {
    int32_t any = 0;
    for (int w = 0; w < kWarps; ++w) any |= shared.found[w];
    return any != 0;
  }

  // Is there a row whose gate is not 0? To every thread of the block.
  ATTN_DEVICE static bool gated_on(const Params& p, const RowItem& item, Shared& shared) {
    const int r = seam::thread();
    const bool on = seam::any(r < item.rows && gate(p, item, r) != 0);
    if (seam::lane() == 0) shared.found[seam::warp()] = on;
    seam::sync_block();
    return any_found(shared);
  }

  ATTN_DEVICE static void load_queries(const Params& p, const RowItem& item, Shared& shared) {
    shared.q.template load<kThreads>(
        head(p.q, item.seq.batch, 0), static_cast<int>(p.dim), rows_aligned(p.q), [&](int r) {
          r = min_i32(r, item.rows - 1);
          return item.head_of(r) * p.q.head + (item.seq.q_token + item.query_of(r)) * p.q.token;
        });
  }

  ATTN_DEVICE static void load_keys(const Params& p, const RowItem& item, const KeyTile& t, Shared& shared) {
    shared.k.template load<kThreads>(head(p.k, 0, item.group.head_kv), static_cast<int>(p.dim), rows_aligned(p.k),
                                     [&](int r) { return t.k_row[r]; });
    shared.v.template load<kThreads>(head(p.v, 0, item.group.head_kv), static_cast<int>(p.dim_v), rows_aligned(p.v),
                                     [&](int r) { return t.v_row[r]; });
  }

  ATTN_DEVICE static void load_rows(const Params& p, const RowItem& item, Row (&rows)[2], RowsReach& reach) {
    const int32_t* ids = p.segment_q.data;
    const int32_t words = static_cast<int32_t>((p.layout.block_k + 31) / 32);
    const int64_t block = p.schedule == ScheduleKind::layout ? item.group.block_row * p.layout.block_q : 0;
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int32_t query = item.query_of(min_i32(my_row(i), item.rows - 1));
      rows[i].window = row_window(p.rule, row_position(p, item.group.queries, item.group.keys, query));
      rows[i].segment =
          ids ? ids[item.seq.batch * p.segment_q.batch + (item.seq.q_token + query) * p.segment_q.token] : 0;
      rows[i].words = static_cast<int32_t>(query - block) * words;
    }
    if (!ids) return;
    reach.segment_low = min_i32(rows[0].segment, rows[1].segment);
    reach.segment_high = max_i32(rows[0].segment, rows[1].segment);
    warp_range(reach.segment_low, reach.segment_high);
  }

  ATTN_DEVICE static void multiply_keys(Shared& shared, Scores& s) {
    ATTN_UNROLL
    for (int n = 0; n < kKeyGroups; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
    ATTN_UNROLL
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[4];
      shared.q.operand_a(a, seam::warp() * kWarpRows, k);
      ATTN_UNROLL
      for (int n = 0; n < kKeyGroups; n += 2) {
        uint32_t b[2], c[2];
        shared.k.operands_b(b, c, 8 * n, k);
        seam::mma<T>(s[n], a, b);
        seam::mma<T>(s[n + 1], a, c);
      }
    }
  }

  ATTN_DEVICE static bool visible_key(const Params& p, const KeyTile& t, int key, const Row& row) {
    bool keep = visible(t.position[key], row.window.lo, row.window.hi, row.window.cap, t.exempt[key]);
    if (p.segment_k.data) keep &= t.segment[key] == row.segment;
    if (t.word[key] >= 0) keep = keep && (p.layout.bits[t.word[key] + row.words] >> t.bit[key] & 1);
    return keep;
  }

  // Products -> logits in base-2 units, -inf where the row doesn't see the key.
  ATTN_DEVICE static void modify(const Params& p, const KeyTile& t, const Row (&rows)[2], bool masked, Scores& s) {
    const float scale = static_cast<float>(p.scale * kLog2e), cap = static_cast<float>(p.softcap * kLog2e);
    ATTN_UNROLL
    for (int n = 0; n < kKeyGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = 8 * n + 2 * (seam::lane() % 4) + e % 2;
        float x = s[n][e] * scale;
        if (cap > 0) {  // cap tanh(x / cap)
          const float f = seam::exp2_fast(std::fabs(x) / cap * static_cast<float>(-2 * kLog2e));
          x = std::copysign(cap * ((1 - f) / (1 + f)), x);
        }
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

  // Weights of keys [16 k, 16 k + 16) as operand A.
  ATTN_DEVICE static void operand_weights(uint32_t (&a)[4], const Scores& s, int k) {
    a[0] = seam::pack<T>(s[2 * k][0], s[2 * k][1]);
    a[1] = seam::pack<T>(s[2 * k][2], s[2 * k][3]);
    a[2] = seam::pack<T>(s[2 * k + 1][0], s[2 * k + 1][1]);
    a[3] = seam::pack<T>(s[2 * k + 1][2], s[2 * k + 1][3]);
  }

  ATTN_DEVICE static void multiply_values(Shared& shared, const Scores& s, State& state) {
    ATTN_UNROLL
    for (int k = 0; k < kTileKeys / 16; ++k) {
      uint32_t a[4];
      operand_weights(a, s, k);
      ATTN_UNROLL
      for (int n = 0; n < kFeatureGroups; n += 2) {
        uint32_t b[2], c[2];
        shared.v.operands_b_transposed(b, c, 16 * k, n / 2);
        seam::mma<T>(state.out[n], a, b);
        seam::mma<T>(state.out[n + 1], a, c);
      }
    }
  }

  // The same where v holds NaN or infinity that some row doesn't see: 0 times NaN is NaN, so they are taken out of the
  // product and their weights summed beside it.
  ATTN_DEVICE static void multiply_values_not_finite(Shared& shared, const Scores& s, State& state) {
    uint32_t a[kTileKeys / 16][4];
    ATTN_UNROLL
    for (int k = 0; k < kTileKeys / 16; ++k) operand_weights(a[k], s, k);
    ATTN_UNROLL
    for (int n = 0; n < kFeatureGroups; n += 2) {
      uint32_t b[kTileKeys / 16][2][2];
      float up[2][4] = {}, down[2][4] = {};
      ATTN_UNROLL
      for (int k = 0; k < kTileKeys / 16; ++k) {
        shared.v.operands_b_transposed(b[k][0], b[k][1], 16 * k, n / 2);
        ATTN_UNROLL
        for (int i = 0; i < 2; ++i) {
          uint32_t plus[2], minus[2];
          ATTN_UNROLL
          for (int j = 0; j < 2; ++j) split_not_finite<T>(b[k][i][j], plus[j], minus[j]);
          seam::mma<T>(up[i], a[k], plus);
          seam::mma<T>(down[i], a[k], minus);
        }
      }
      ATTN_UNROLL
      for (int i = 0; i < 2; ++i) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (up[i][e] != 0) state.out[n + i][e] += INFINITY;
          if (down[i][e] != 0) state.out[n + i][e] -= INFINITY;
        }
        // Last: what follows the final mma would be put off to the end of the function, with all its registers.
        ATTN_UNROLL
        for (int k = 0; k < kTileKeys / 16; ++k) seam::mma<T>(state.out[n + i], a[k], b[k][i]);
      }
    }
  }

  ATTN_DEVICE static void finish(const Params& p, const RowItem& item, State& state) {
    const bool pairs =
        reinterpret_cast<uintptr_t>(p.out.data) % 4 == 0 && (p.out.batch | p.out.head | p.out.token) % 2 == 0;
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      state.sum[i] += seam::shuffle_xor(state.sum[i], 1);
      state.sum[i] += seam::shuffle_xor(state.sum[i], 2);
      const int32_t r = my_row(i);
      if (r >= item.rows) continue;
      const int64_t h = item.head_of(r), token = item.seq.q_token + item.query_of(r);
      const float sink = p.sink_logits ? p.sink_logits[h] * static_cast<float>(kLog2e) : -INFINITY;
      float factor, lse;
      finish_row(state.top[i], state.sum[i], sink, factor, lse);
      if (p.head_gate.data) factor *= gate(p, item, r);
      if (seam::lane() % 4 == 0) static_cast<float*>(p.lse)[(item.seq.batch * p.heads + h) * p.tq + token] = lse;
      T* out = static_cast<T*>(p.out.data) + item.seq.batch * p.out.batch + h * p.out.head + token * p.out.token;
      ATTN_UNROLL
      for (int n = 0; n < kFeatureGroups; ++n) {
        const int64_t d = 8 * n + 2 * (seam::lane() % 4);
        const float low = state.out[n][2 * i] * factor, high = state.out[n][2 * i + 1] * factor;
        if (pairs && d + 1 < p.dim_v) {
          *reinterpret_cast<uint32_t*>(out + d) = seam::pack<T>(low, high);
        } else {
          if (d < p.dim_v) out[d] = seam::from_float<T>(low);
          if (d + 1 < p.dim_v) out[d + 1] = seam::from_float<T>(high);
        }
      }
    }
  }

  ATTN_DEVICE static void attend(const Params& p, const RowItem& item, Shared& shared, State& state) {
    const bool segments = p.segment_k.data;
    const int32_t first = seam::warp() * kWarpRows;
    const bool idle = first >= item.rows;  // the warp has no rows, but copies and waits with the others
    RowsReach reach = RowsReach::of(p, item, idle ? 0 : first, min_i32(first + kWarpRows, item.rows));
    const RowsReach block_reach = RowsReach::of(p, item, 0, item.rows);
    Row rows[2];
    load_rows(p, item, rows, reach);
    int32_t next = 0;
    if (seam::warp() == 0) next = fill_key_tile(p, item, next, shared.tile[0]);
    for (int turn = 0;; turn ^= 1) {
      const KeyTile& t = shared.tile[turn];
      seam::sync_block();
      if (t.n == 0) return;
      load_keys(p, item, t, shared);
      seam::copy_commit();
      if (seam::warp() == 0) next = fill_key_tile(p, item, next, shared.tile[turn ^ 1]);
      const bool scan = segments || !block_reach.sees_all(t, false);
      seam::copy_wait<0>();
      if (scan) {
        const bool found = seam::any(!shared.v.template mine_finite<kThreads>());
        if (seam::lane() == 0) shared.found[seam::warp()] = found;
      }
      seam::sync_block();
      if (idle || reach.sees_none(t, segments)) continue;
      Scores s;
      multiply_keys(shared, s);
      modify(p, t, rows, !reach.sees_all(t, segments), s);
      softmax(s, state);
      if (scan && any_found(shared)) multiply_values_not_finite(shared, s, state);
      else multiply_values(shared, s, state);
    }
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    if (seam::thread() == 0) shared.open = AttendGrid::open(p, seam::block_x(), seam::block_y(), shared.item);
    seam::sync_block();
    if (!shared.open) return;
    const RowItem& item = shared.item;
    State state;
    ATTN_UNROLL
    for (int n = 0; n < kFeatureGroups; ++n) state.out[n][0] = state.out[n][1] = state.out[n][2] = state.out[n][3] = 0;
    state.top[0] = state.top[1] = -INFINITY;
    state.sum[0] = state.sum[1] = 0;
    if (!p.skip_gated || !p.head_gate.data || gated_on(p, item, shared)) {
      load_queries(p, item, shared);  // part of the first tile's group of copies
      attend(p, item, shared, state);
    }
    finish(p, item, state);
  }
};

}  // namespace attn::cuda
