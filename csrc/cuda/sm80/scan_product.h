// The product that linear attention and its gradients are made of, for rows of one segment of a scan:
//
//   out_i = a_i S + u_i z + sum_{j seen} (a_i . b_j + u_i + w_j) c_j
//
// S and z are sums over other segments, which are known by now; the tokens j seen are those of the segment up to i
// (from i on, in reverse). u and w are numbers of a row and of a token, or absent. In the forward pass z is something
// else, the sum of the keys' features, and the mass of a row is a_i . z + sum_j a_i . b_j.
//
// A block takes 64 rows and 64 columns of out, a warp 16 rows, so that every width is served by the same kernel; scores
// are computed anew for each 64 columns. Inside a segment the work is quadratic, which costs less than the memory of
// more states would. Products on tensor cores from sm_80 on.
//
// With taylor2 the features are for sums over other segments only: inside a segment 1 + y + y^2 / 2 costs less than
// their product. A gradient by features becomes one by elements before tokens are added.
//
// Shared memory, of a block: 3 tiles, 25 KiB for bf16 and 49 KiB otherwise; with taylor2 34 KiB more.
#pragma once

#include "cuda/grid.h"
#include "cuda/scan_rows.h"
#include "cuda/scan_segments.h"
#include "cuda/sm80/key_walk.h"
#include "cuda/sm80/scan_tile.h"
#include "cuda/sm80/tile_product.h"

namespace attn::cuda {

// With taylor2, of the rows of a warp at a time.
struct TaylorSums {
  float dphi[kTile][kTile + 1], dx[kTile][kTile + 1];
  bool there[kTile];  // is there a token?
};
struct NoTaylorSums {};

template <class T, bool kTaylor> struct ScanProduct {
  static constexpr int kThreads = kTileThreads, kWarps = kThreads / 32;
  using Params = ScanProductParams;
  using Tile = ScanTile<T>;
  struct Shared {
    Tile a, b, c;
    float z[kTile], term[kTile];
    int32_t found[kWarps];
    std::conditional_t<kTaylor, TaylorSums, NoTaylorSums> taylor;
  };
  // The block's rows.
  struct Place {
    ScanSegment at;
    int64_t head, state_head, first, count, column;  // first: token of the sequence
    ATTN_DEVICE int64_t token() const { return at.token + first; }
  };

  ATTN_HD static int64_t segment_tiles(const Params& p) { return p.segments.length / kTile; }
  static Grid grid(const Params& p) { return {p.segments.slots() * segment_tiles(p), tiles_of(p.c.dim), p.heads}; }

  ATTN_DEVICE static bool open(const Params& p, Place& x) {
    const int64_t tile = seam::block_x() % segment_tiles(p);
    if (!open_segment(p.segments, seam::block_x() / segment_tiles(p), x.at)) return false;
    x.first = x.at.begin + tile * kTile;
    x.count = x.at.end - x.first < kTile ? x.at.end - x.first : kTile;
    x.column = static_cast<int64_t>(seam::block_y()) * kTile;
    x.head = seam::block_z();
    x.state_head = p.many ? x.head : x.head / p.share;
    return x.count > 0;
  }

  ATTN_DEVICE static void load_a(const ScanRows& a, const Place& x, int64_t inner, Shared& shared) {
    load_scan_rows<T, kThreads, kTaylor>(shared.a, a, x.at.batch, x.head, x.token(), x.count, inner);
  }

  // Elements [inner, column] of the state, 64 x 64, into c.
  ATTN_DEVICE static void load_state(const Params& p, const Place& x, int64_t inner, Shared& shared) {
    const StateView& v = p.state;
    const int64_t index = (v.by_segment ? x.at.slot : x.at.sequence) * v.heads + x.state_head;
    const float* s = v.s + index * p.a.dim * v.outer;
    // Rows of s, in the order in which they lie.
    const int64_t first = v.transposed ? x.column : inner, across = v.transposed ? inner : x.column;
    const int64_t rows = v.transposed ? v.outer : p.a.dim, columns = v.transposed ? p.a.dim : v.outer;
    ATTN_ROLLED
    for (int i = seam::thread(); i < kTile * kTile; i += kThreads) {
      const int row = i / kTile, column = i % kTile;
      const bool in = first + row < rows && across + column < columns;
      const float y = in ? s[(first + row) * columns + across + column] : 0;
      if (v.transposed) shared.c.put(column, row, y);
      else shared.c.put(row, column, y);
    }
    if (const int r = seam::thread(); r < kTile) {
      shared.z[r] = p.term == StateTerm::mass && inner + r < p.a.dim ? v.z[index * p.a.dim + inner + r] : 0;
    }
  }

  // sums = a S, and the mass from it.
  ATTN_DEVICE static void take_state(const Params& p, const Place& x, Shared& shared, TileSums& sums,
                                     float (&mass)[2]) {
    float own[4] = {};
    ATTN_ROLLED
    for (int64_t inner = 0; inner < p.a.dim; inner += kTile) {
      if (inner > 0) seam::sync_block();
      load_a(p.a, x, inner, shared);
      load_state(p, x, inner, shared);
      seam::sync_block();
      add_product_and_vector<TileRows::product>(sums, own, shared.a, shared.c, shared.z);
    }
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) mass[i] = seam::lane() % 4 == 0 ? own[2 * i] + own[2 * i + 1] : 0;
  }

  // u_i z of the columns.
  ATTN_DEVICE static void add_term(const Params& p, const Place& x, const float (&u)[2], TileSums& sums) {
    const StateView& v = p.state;
    const float* z = v.z + ((v.by_segment ? x.at.slot : x.at.sequence) * v.heads + x.state_head) * v.outer;
    ATTN_UNROLL
    for (int n = 0; n < kTile / 8; ++n) {
      ATTN_UNROLL
      for (int c = 0; c < 2; ++c) {
        const int64_t column = x.column + sums_column(n, c);
        const float y = column < v.outer ? z[column] : 0;
        ATTN_UNROLL
        for (int i = 0; i < 2; ++i) sums[n][2 * i + c] += (p.term == StateTerm::one ? 1.0f : u[i]) * y;
      }
    }
  }

  // What the state adds to sums over features, pulled back to the elements of the columns.
  ATTN_DEVICE static void take_state_slope(const Params& p, const Place& x, const float (&u)[2], Shared& shared,
                                           TileSums& sums) {
    auto& [dphi, dx, there] = shared.taylor;
    const int row = 16 * seam::warp() + seam::lane() / 2, half = seam::lane() % 2;  // a lane has every other element
    ATTN_ROLLED
    for (int i = half; i < kTile; i += 2) dx[row][i] = 0;
    Place y = x;
    ATTN_ROLLED
    for (y.column = 0; y.column < p.state.outer; y.column += kTile) {
      if (y.column > 0) seam::sync_block();
      clear_sums(sums);
      float mass[2];
      take_state(p, y, shared, sums, mass);
      if (p.term != StateTerm::none) add_term(p, y, u, sums);
      for_sums([&](int n, int e, int r, int column) { dphi[r][column] = sums[n][e]; });
      seam::sync_warp();
      if (row < x.count) pull_back(p, x, y.column, dphi[row], dx[row], row, half);
      seam::sync_warp();
    }
    for_sums([&](int n, int e, int r, int column) { sums[n][e] = dx[r][column]; });
  }
  ATTN_DEVICE static void pull_back(const Params& p, const Place& x, int64_t feature, const float* dphi, float* dx,
                                    int row, int half) {
    const T* elements = scan_row<const T>(p.at.x, x.at.batch, x.head, x.token() + row);
    const Taylor2 map(p.at.elements);
    const auto element = [&](int64_t i) { return i == 0 ? 1.0f : seam::to_float(elements[i - 1]); };
    const auto add = [&](int64_t i, float d) {
      const int64_t to = i - 1 - x.column;
      if (i > 0 && to >= 0 && to < kTile && to % 2 == half) dx[to] += d;
    };
    Taylor2::Place at = map.find(feature);
    ATTN_ROLLED
    for (int i = 0; i < kTile && feature + i < p.state.outer; ++i) {
      const float d = dphi[i] * map.scale(at);
      add(at.a, d * element(at.b));
      add(at.b, d * element(at.a));
      map.next(at);
    }
  }

  // c holds NaN or infinity that some row doesn't see, and 0 times NaN is NaN: they move to b, which is done with.
  ATTN_DEVICE static void take_out_not_finite(Shared& shared) {
    seam::sync_block();
    ATTN_ROLLED
    for (int i = seam::thread(); i < kTile * kTile; i += kThreads) {
      const int row = i / kTile, column = i % kTile;
      const float y = shared.c.get(row, column);
      const bool finite = y - y == 0;
      shared.b.put(row, column, finite ? 0 : y);
      if (!finite) shared.c.put(row, column, 0);
    }
    seam::sync_block();
  }
  ATTN_DEVICE static void put_back_not_finite(const Params& p, Shared& shared, TileSums& sums) {
    ATTN_ROLLED
    for (int j = 0; j < kTile; ++j) {
      ATTN_UNROLL
      for (int n = 0; n < kTile / 8; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float y = shared.b.get(j, sums_column(n, e % 2));
          if (y != 0 && seen(p, sums_row(16 * seam::warp(), e / 2), j)) sums[n][e] += y;
        }
      }
    }
  }

  ATTN_DEVICE static bool seen(const Params& p, int row, int token) { return p.reverse ? token >= row : token <= row; }

  // scores += a_i . b_j for the tokens from `first` of a head of b. kWithC: the columns of c as well, and what else the
  // tokens count for.
  template <bool kWithC>
  ATTN_DEVICE static void add_scores(const Params& p, const Place& x, const ScanRows& a, const ScanRows& b,
                                     int64_t head, int64_t first, Shared& shared, TileSums& scores) {
    const int64_t left = x.at.end - first, token = x.at.token + first, batch = x.at.batch;
    ATTN_ROLLED
    for (int64_t inner = 0; inner == 0 || inner < a.dim; inner += kTile) {
      seam::sync_block();
      if (kTaylor || a.dim > kTile) load_a(a, x, inner, shared);  // otherwise there since take_state
      load_scan_rows<T, kThreads, false>(shared.b, b, batch, head, token, left, inner);
      if (kWithC && inner + kTile >= a.dim) {
        const bool finite = load_scan_rows<T, kThreads, kTaylor>(shared.c, p.c, batch, head, token, left, x.column);
        const bool found = seam::any(!finite);
        if (seam::lane() == 0) shared.found[seam::warp()] = found;
        if (const int r = seam::thread(); r < kTile) {
          const int64_t heads = p.many ? p.heads * p.share : p.heads;
          shared.term[r] = p.token_term && r < left ? p.token_term[(batch * heads + head) * p.tokens + token + r] : 0;
          if constexpr (kTaylor) shared.taylor.there[r] = r < left && row_kept(b.keep, batch, token + r);
        }
      }
      seam::sync_block();
      add_product<TileRows::product, TileRows::product>(scores, shared.a, shared.b);
    }
  }

  // The tokens from `first` of a head of b and c.
  ATTN_DEVICE static void take_tokens(const Params& p, const Place& x, int64_t head, int64_t first, const float (&u)[2],
                                      Shared& shared, TileSums& sums, float (&mass)[2]) {
    const bool diagonal = first == x.first;
    TileSums scores, slopes;
    if constexpr (kTaylor) {
      clear_sums(slopes);
      if (p.weight == TokenWeight::slope) add_scores<false>(p, x, p.slope_a, p.slope_b, head, first, shared, slopes);
    }
    clear_sums(scores);
    add_scores<true>(p, x, kTaylor ? p.inside_a : p.a, p.b, head, first, shared, scores);
    for_sums([&](int n, int e, int row, int j) {
      float w = scores[n][e];
      if (kTaylor && p.weight == TokenWeight::taylor2) {
        const float y = w * p.inverse_root;
        w = 1 + y + y * y / 2;
      } else {
        w += u[e / 2] + shared.term[j];
      }
      if constexpr (kTaylor) {
        if (p.weight == TokenWeight::slope) w *= (1 + slopes[n][e] * p.inverse_root) * p.inverse_root;
        if (!shared.taylor.there[j]) w = 0;
      }
      if (diagonal && !seen(p, row, j)) w = 0;
      scores[n][e] = w;
      mass[e / 2] += w;
    });
    const bool scan = diagonal && any_found(shared.found);
    if (scan) take_out_not_finite(shared);
    add_product_of_sums(sums, scores, shared.c);
    if (scan) put_back_not_finite(p, shared, sums);
  }

  ATTN_DEVICE static void finish(const Params& p, const Place& x, TileSums& sums, float (&mass)[2]) {
    const bool pairs = stores_pairs<T>(p.out);
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      mass[i] += seam::shuffle_xor(mass[i], 1);
      mass[i] += seam::shuffle_xor(mass[i], 2);
      const int r = sums_row(16 * seam::warp(), i);
      if (r >= x.count) continue;
      const int64_t token = x.token() + r, batch = x.at.batch;
      float factor = 1;
      if (p.normalize) {
        mass[i] += mass[i] < 0 ? -static_cast<float>(p.eps) : static_cast<float>(p.eps);
        factor = mass[i] == 0 ? 0 : 1 / mass[i];
        const bool writes = x.column == 0 && seam::lane() % 4 == 0;
        if (p.mass && writes) p.mass[(batch * p.heads + x.head) * p.tokens + token] = mass[i];
      }
      const bool kept = row_kept(p.at.keep, batch, token);
      const T* at = p.at.x.data && kept ? scan_row<const T>(p.at.x, batch, x.head, token) : nullptr;
      T* out = scan_row<T>(p.out, batch, x.head, token);
      ATTN_UNROLL
      for (int n = 0; n < kTile / 8; ++n) {
        const int64_t d = x.column + sums_column(n, 0);
        float y[2];
        ATTN_UNROLL
        for (int c = 0; c < 2; ++c) {
          y[c] = kept ? sums[n][2 * i + c] * factor : 0;
          if (at && d + c < p.c.dim) y[c] = map_slope(p.at.map, seam::to_float(at[d + c]), y[c]);
        }
        store_pair(out, d, p.c.dim, pairs, y[0], y[1]);
      }
    }
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    Place x;
    if (!open(p, x)) return;
    TileSums sums;
    clear_sums(sums);
    float mass[2] = {}, u[2] = {};
    if (p.row_term) {
      ATTN_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int r = sums_row(16 * seam::warp(), i);
        if (r < x.count) u[i] = p.row_term[(x.at.batch * p.heads + x.head) * p.tokens + x.token() + r];
      }
    }
    const bool slope = kTaylor && p.weight == TokenWeight::slope;
    if constexpr (kTaylor) {
      if (slope) take_state_slope(p, x, u, shared, sums);
    }
    if (!slope) {
      take_state(p, x, shared, sums, mass);
      if (p.term == StateTerm::row || p.term == StateTerm::one) add_term(p, x, u, sums);
    }
    if (p.inside && (kTaylor || p.a.dim > 0)) {
      const int64_t begin = p.reverse ? x.first : x.at.begin, end = p.reverse ? x.at.end : x.first + x.count;
      const int64_t head = p.many ? x.head * p.share : x.head / p.share, heads = p.many ? p.share : 1;
      ATTN_ROLLED
      for (int64_t h = head; h < head + heads; ++h) {
        ATTN_ROLLED
        for (int64_t first = begin; first < end; first += kTile) take_tokens(p, x, h, first, u, shared, sums, mass);
      }
    }
    finish(p, x, sums, mass);
  }
};

}  // namespace attn::cuda
