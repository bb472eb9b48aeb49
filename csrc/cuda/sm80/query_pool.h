// The passes of query pooling (query_pool_parts.h), sm_80 and later. A block has rows, 16 for few queries and 64
// otherwise, and goes along columns: 64 features of rows and columns at a time come into shared memory, multiply, and
// once a tile's products are whole they become weights, which multiply what its columns carry. Any number of features;
// of the result a block takes 128.
//
// Few queries: bound by reading k and v once, which the rows beside each other do for all heads of a group. Four warps
// share the columns, 128 at a time; their results are added up in shared memory. Many queries: warps share the rows.
//
// Copies (cp.async) of the next 64 features fly while these are multiplied: 12 to 18 KiB a block, twice that in
// float32, and 24 to 38 KiB of shared memory (52 to 89), so that several blocks of an SM keep memory busy.
#pragma once

#include "cuda/grid.h"
#include "cuda/query_pool_parts.h"
#include "cuda/sm80/pool_tile.h"
#include "cuda/sm80/warp_attend.h"

namespace attn::cuda {

// Weights: softmax over the columns as they come; from known statistics; or none, but the statistics of a softmax
// over the columns are the result.
enum class PoolWeights { online, known, statistics };

template <class T, int kRowWarps, PoolWeights kWeights> struct QueryPool {
  static constexpr int kThreads = 128, kWarps = kThreads / 32, kColumnWarps = kWarps / kRowWarps;
  static constexpr int kRows = 16 * kRowWarps, kColumns = kPoolColumns * kColumnWarps;
  static constexpr bool kSums = kWeights != PoolWeights::statistics;
  static_assert(kSums || kColumnWarps == 1);
  using Tile = PoolTile<T>;
  using Warp = WarpAttend<T, kSums ? kPoolSlab : 8, kPoolColumns>;
  using State = typename Warp::State;
  using Params = QueryPoolPass;

  struct Stage {
    typename Tile::template Rows<kRows> rows;
    typename Tile::template Rows<kColumns> columns;
  };
  struct Found {
    float out[kWarps][16][kPoolSlab + 8];  // the pitch keeps the rows of a store in different banks
    float top[kWarps][16], sum[kWarps][16];
  };
  struct Nothing {};
  struct Shared {
    union {
      Stage stage[2];
      std::conditional_t<(kColumnWarps > 1), Found, Nothing> found;
    };
    typename Tile::Shared warp[kWarps];
  };

  static Grid grid(const Params& p) { return {p.blocks_of_parts() * p.units * p.row_tiles * p.slabs}; }

  // Where a block works: keys [begin, end) of a sequence; its first row, or -1 if rows are keys.
  struct Item {
    SequenceSpan span;
    int64_t sequence, unit, head_kv, slab;
    int32_t begin, end, first_row, parts, part;
  };

  // False if nothing is to be done for the part. An empty sequence has one: its result is written, too.
  ATTN_DEVICE static bool open(const Params& p, int64_t slot, Item& item) {
    const ScanChunks::Place place = p.parts.find(slot);
    const int64_t parts = p.parts.chunks(place.sequence);
    const bool of_empty = parts == 0 && place.chunk == 0 && !p.keys_in_rows && p.range == 0;
    if (place.chunk < 0 || (place.chunk >= parts && !of_empty)) return false;
    const ScanChunks::Range tokens = p.parts.sequence(place.sequence);
    item.sequence = place.sequence;
    item.span = {p.parts.cu ? 0 : place.sequence, tokens.begin, tokens.end - tokens.begin};
    item.parts = static_cast<int32_t>(parts);
    item.part = static_cast<int32_t>(place.chunk);
    item.begin = static_cast<int32_t>(place.chunk * p.parts.length);
    item.end = min_i32(item.begin + static_cast<int32_t>(p.parts.length), static_cast<int32_t>(item.span.length));
    return true;
  }

  ATTN_DEVICE static bool kept(const Params& p, const Item& item, int32_t key) {
    return key < item.end && taken(p.pool.mask, item.span.batch, item.span.first + key);
  }

  // Where a key or a query of a unit begins, or -1 if there is none.
  ATTN_DEVICE static int64_t place(const Params& p, const Item& item, const View4& x, bool key, int64_t unit,
                                   int32_t i) {
    if (key) {
      if (!kept(p, item, i)) return -1;
      return item.span.batch * x.batch + item.head_kv * x.head + (item.span.first + i) * x.token;
    }
    if (i >= p.queries()) return -1;
    const int32_t queries = static_cast<int32_t>(p.pool.queries);
    return item.sequence * x.batch + (unit * p.share + i / queries) * x.head + i % queries * x.token;
  }
  ATTN_DEVICE static int64_t row_place(const Params& p, const Item& item, const View4& x, int32_t r) {
    return place(p, item, x, p.keys_in_rows, item.unit, p.keys_in_rows ? item.begin + r : item.first_row + r);
  }

  // A tile of columns: which unit's queries, or keys; from where on, and how many there are.
  struct Columns {
    int64_t unit;
    int32_t first, count;
  };
  ATTN_DEVICE static int32_t column_tiles(const Params& p, const Item& item) {
    const int64_t n = p.keys_in_rows ? p.queries() : item.end - item.begin, tiles = (n + kColumns - 1) / kColumns;
    return static_cast<int32_t>(p.keys_in_rows ? tiles * p.block_units : tiles);
  }
  ATTN_DEVICE static Columns columns_of(const Params& p, const Item& item, int32_t tile) {
    if (!p.keys_in_rows) {
      const int32_t first = item.begin + tile * kColumns;
      return {item.unit, first, min_i32(item.end - first, kColumns)};
    }
    const int32_t queries = static_cast<int32_t>(p.queries()), tiles = (queries + kColumns - 1) / kColumns;
    const int32_t first = tile % tiles * kColumns;
    return {item.unit + tile / tiles, first, min_i32(queries - first, kColumns)};
  }

  // Steps of a tile: 64 features of the first product, of the second, of what is summed.
  struct Steps {
    int x, y, values;
    ATTN_DEVICE int all() const { return x + y + values; }
  };
  ATTN_DEVICE static Steps steps_of(const Params& p, const Item& item) {
    const auto chunks = [](int64_t n) { return static_cast<int>((n + kPoolChunk - 1) / kPoolChunk); };
    const int64_t left = p.dim - item.slab * kPoolSlab;
    return {chunks(p.dim_x), chunks(p.dim_y), kSums ? chunks(left < kPoolSlab ? left : kPoolSlab) : 0};
  }

  ATTN_DEVICE static void load(const Params& p, const Item& item, const Steps& steps, int32_t tile, int step,
                               Stage& to) {
    const Columns c = columns_of(p, item, tile);
    const bool second = step >= steps.x, sums = step >= steps.x + steps.y;
    const int64_t from = sums ? item.slab * kPoolSlab + (step - steps.x - steps.y) * kPoolChunk
                              : (second ? step - steps.x : step) * kPoolChunk;
    const View4& columns = sums ? p.values : second ? p.column_y : p.column_x;
    const int dim = static_cast<int>((sums ? p.dim : second ? p.dim_y : p.dim_x) - from);
    to.columns.template load<kThreads>(
        static_cast<const T*>(columns.data) + from, dim, rows_aligned<T>(columns),
        [&](int i) { return place(p, item, columns, !p.keys_in_rows, c.unit, c.first + i); });
    if (sums) return;
    const View4& rows = second ? p.row_y : p.row_x;
    to.rows.template load<kThreads>(static_cast<const T*>(rows.data) + from, dim, rows_aligned<T>(rows),
                                    [&](int r) { return row_place(p, item, rows, r); });
  }

  // What a logit (base 2) loses before the exponential, and its dP after; +inf for what isn't there, hence a weight of
  // exactly 0.
  struct Known { float lse, delta; };
  ATTN_DEVICE static Known known(const Params& p, const Item& item, bool key, int64_t unit, int32_t i) {
    if (key ? !kept(p, item, i) : i >= p.queries()) return {INFINITY, 0};
    if (kWeights != PoolWeights::known) return {0, 0};
    if (key && p.pool.activation == PoolActivation::softmax_queries) {
      const int64_t at = key_index(p, item, unit, i);
      return {p.key_lse[at], p.key_delta ? p.key_delta[at] : 0};
    }
    if (!key && p.pool.activation == PoolActivation::softmax_keys) {
      const int64_t at = item.sequence * p.query_rows() + unit * p.queries() + i;
      const float lse = p.lse[at];
      return {lse == -INFINITY ? INFINITY : lse * static_cast<float>(kLog2e), p.delta[at]};
    }
    return {0, 0};
  }
  ATTN_DEVICE static int64_t key_index(const Params& p, const Item& item, int64_t unit, int32_t key) {
    const Sequences& s = p.pool.sequences;
    return (unit * s.batch + item.span.batch) * s.tokens + item.span.first + key;
  }

  ATTN_DEVICE static float mean_factor(const Params& p, const Item& item) {
    if (p.pool.activation != PoolActivation::relu_mean) return 1;
    if (p.inverse_count) return p.inverse_count[item.sequence];
    return item.span.length > 0 ? 1 / static_cast<float>(item.span.length) : 0;
  }

  // Products -> weights of the calling warp's rows and columns, in x.
  ATTN_DEVICE static void weigh(const Params& p, const Item& item, const Columns& c, int row, int column, PoolScores& x,
                                PoolScores& y, State& state) {
    const bool relu = p.pool.activation == PoolActivation::relu_mean;
    const float scale = static_cast<float>(relu ? p.pool.scale : p.pool.scale * kLog2e);
    Known columns[kPoolGroups][2], rows[2] = {};
    ATTN_UNROLL
    for (int n = 0; n < kPoolGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int32_t i = c.first + column + 8 * n + 2 * (seam::lane() % 4) + e;
        columns[n][e] = known(p, item, !p.keys_in_rows, c.unit, i);
      }
    }
    ATTN_UNROLL
    for (int i = 0; i < 2 && kWeights == PoolWeights::known; ++i) {
      const int32_t r = Warp::row_of(row, i);
      rows[i] = known(p, item, p.keys_in_rows, c.unit, p.keys_in_rows ? item.begin + r : item.first_row + r);
    }
    const float mean = p.range > 0 ? mean_factor(p, item) : 1;
    ATTN_UNROLL
    for (int n = 0; n < kPoolGroups; ++n) {
      ATTN_UNROLL
      for (int e = 0; e < 4; ++e) {
        const Known &u = rows[e / 2], &v = columns[n][e % 2];
        const float logit = x[n][e] * scale;
        if constexpr (kWeights != PoolWeights::known) {
          x[n][e] = logit - v.lse;
        } else if (relu) {
          x[n][e] = p.gradient ? (logit > 0 ? y[n][e] * mean : 0) : logit < 0 ? 0 : logit;
        } else {
          const float weight = seam::exp2_fast(logit - (u.lse + v.lse));
          x[n][e] = p.gradient ? weight * (y[n][e] - (u.delta + v.delta)) : weight;
        }
      }
    }
    if constexpr (kWeights != PoolWeights::known) Warp::softmax(x, state);
    if constexpr (!kSums) {
      ATTN_UNROLL
      for (int n = 0; n < kPoolGroups; ++n) {
        ATTN_UNROLL
        for (int e = 0; e < 4; ++e) state.out[0][e / 2 * 2] += x[n][e] * y[n][e];
      }
    }
  }

  // Adds the columns of an item to the calling warp's state. `turn`: stage of the next copy, from item to item.
  ATTN_DEVICE static void pass(const Params& p, const Item& item, Shared& shared, int& turn, State& state) {
    const Steps steps = steps_of(p, item);
    const int row = kColumnWarps == 1 ? 16 * seam::warp() : 0;
    const int column = kColumnWarps == 1 ? 0 : kPoolColumns * seam::warp();
    const int64_t rows_left = p.keys_in_rows ? item.end - item.begin : p.queries() - item.first_row;
    const int32_t tiles = column_tiles(p, item);
    PoolScores x = {}, y = {};
    if (tiles == 0) return;
    load(p, item, steps, 0, 0, shared.stage[turn]);
    seam::copy_commit();
    for (int32_t tile = 0; tile < tiles; ++tile) {
      const Columns c = columns_of(p, item, tile);
      const int count = min_i32(c.count - column, kPoolColumns);
      ATTN_ROLLED
      for (int step = 0; step < steps.all(); ++step) {
        const bool last = step + 1 == steps.all();
        seam::copy_wait<0>();
        seam::sync_block();
        Stage& s = shared.stage[turn];
        turn ^= 1;
        if (!last) load(p, item, steps, tile, step + 1, shared.stage[turn]);
        else if (tile + 1 < tiles) load(p, item, steps, tile + 1, 0, shared.stage[turn]);
        seam::copy_commit();
        if (row >= rows_left || count <= 0) continue;
        if (step == 0) clear(x), clear(y);
        if (step < steps.x) Tile::multiply(s.rows, row, s.columns, column, count, x);
        else if (step < steps.x + steps.y) Tile::multiply(s.rows, row, s.columns, column, count, y);
        if (step == steps.x + steps.y - 1) weigh(p, item, c, row, column, x, y, state);
        if constexpr (kSums) {
          if (step == steps.x + steps.y) Tile::add(x, s.columns, column, count, state.out, shared.warp[seam::warp()]);
          if (step == steps.x + steps.y + 1)
            Tile::add(x, s.columns, column, count, state.out + 8, shared.warp[seam::warp()]);
        }
      }
    }
    seam::copy_wait<0>();
  }

  ATTN_DEVICE static void clear(PoolScores& x) {
    ATTN_UNROLL
    for (int n = 0; n < kPoolGroups; ++n) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
  }

  // Where row r of an item goes.
  struct Target {
    T* out;          // or null
    float* partial;  // or null
    float factor;

    ATTN_DEVICE void store(int64_t d, int64_t dim, bool pairs, float low, float high) const {
      if (out && pairs && d + 1 < dim) {
        *reinterpret_cast<Pair*>(out + d) = {seam::from_float<T>(low * factor), seam::from_float<T>(high * factor)};
        return;
      }
      for (int i = 0; i < 2; ++i) {
        const float x = i ? high : low;
        if (d + i >= dim) continue;
        if (out) out[d + i] = seam::from_float<T>(x * factor);
        else if (partial) partial[d + i] = x;
      }
    }
  };
  struct alignas(2 * sizeof(T)) Pair { T low, high; };
  ATTN_DEVICE static bool stores_pairs(const View4& x) {
    return reinterpret_cast<uintptr_t>(x.data) % sizeof(Pair) == 0 && (x.batch | x.head | x.token) % 2 == 0;
  }

  // `block`: of the parts. top and sum: of the row's softmax; the thread `writes` its statistics.
  ATTN_DEVICE static Target target(const Params& p, const Item& item, int64_t block, int32_t r, float top, float sum,
                                   bool writes) {
    Target t{nullptr, nullptr, 0};
    if (p.keys_in_rows) {
      const int32_t key = item.begin + r;
      if (key >= item.end) return t;
      t.out = static_cast<T*>(p.out.data) + item.span.batch * p.out.batch + item.head_kv * p.out.head +
              (item.span.first + key) * p.out.token;
    } else {
      const int64_t i = item.first_row + r, row = item.unit * p.queries() + i;
      if (i >= p.queries()) return t;
      if (p.range > 0 || item.parts > 1) {
        const int64_t slot = p.range > 0 ? block : p.first_slot(item.sequence) + item.part;
        const int64_t at = slot * p.query_rows() + row;
        t.partial = p.partial + at * p.dim;
        if (kWeights == PoolWeights::online && writes) {
          p.partial_softmax[2 * at] = top;
          p.partial_softmax[2 * at + 1] = sum;
        }
        return t;
      }
      t.out = static_cast<T*>(p.out.data) + place(p, item, p.out, false, item.unit, static_cast<int32_t>(i));
      if constexpr (kWeights == PoolWeights::online) {
        float lse;
        finish_row(top, sum, -INFINITY, t.factor, lse);
        if (writes) static_cast<float*>(p.pool.lse)[item.sequence * p.query_rows() + row] = lse;
        return t;
      }
    }
    t.factor = mean_factor(p, item) * static_cast<float>(p.gradient ? p.pool.scale : 1);
    return t;
  }

  // Writes rows whose sums threads hold.
  ATTN_DEVICE static void finish_rows(const Params& p, const Item& item, int64_t block, State& state) {
    const bool pairs = stores_pairs(p.out);
    const int column = 2 * (seam::lane() % 4);
    state.add_up();
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int32_t r = Warp::row_of(16 * seam::warp(), i);
      const Target t = target(p, item, block, r, state.top[i], state.sum[i], item.slab == 0 && column == 0);
      const bool hidden = p.keys_in_rows && t.out && !kept(p, item, item.begin + r);
      ATTN_UNROLL
      for (int n = 0; n < kPoolSlab / 8; ++n) {
        const float low = hidden ? 0 : state.out[n][2 * i], high = hidden ? 0 : state.out[n][2 * i + 1];
        t.store(item.slab * kPoolSlab + 8 * n + column, p.dim, pairs, low, high);
      }
    }
  }

  // Adds up the warps, in their order, and writes their rows: a warp takes a row, a lane pairs of its features.
  ATTN_DEVICE static void finish_found(const Params& p, const Item& item, int64_t block, State& state, Found& found) {
    const int w = seam::warp(), column = 2 * (seam::lane() % 4);
    const bool pairs = stores_pairs(p.out);
    state.add_up();
    seam::sync_block();  // stages are done with
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int r = Warp::row_of(0, i);
      if (column == 0) found.top[w][r] = state.top[i], found.sum[w][r] = state.sum[i];
      ATTN_UNROLL
      for (int n = 0; n < kPoolSlab / 8; ++n) {
        found.out[w][r][8 * n + column] = state.out[n][2 * i];
        found.out[w][r][8 * n + column + 1] = state.out[n][2 * i + 1];
      }
    }
    seam::sync_block();
    for (int r = w; r < 16; r += kWarps) {
      float top = -INFINITY, sum = 0, share[kWarps];
      ATTN_UNROLL
      for (int i = 0; i < kWarps; ++i) top = std::fmax(top, found.top[i][r]);
      ATTN_UNROLL
      for (int i = 0; i < kWarps; ++i) {
        share[i] = 1;
        if (kWeights == PoolWeights::online) share[i] = seam::exp2_fast(found.top[i][r] - (top == -INFINITY ? 0 : top));
        sum += share[i] * found.sum[i][r];
      }
      const Target t = target(p, item, block, r, top, sum, item.slab == 0 && seam::lane() == 0);
      ATTN_UNROLL
      for (int d = 2 * seam::lane(); d < kPoolSlab; d += 64) {
        float x[2] = {};
        ATTN_UNROLL
        for (int i = 0; i < kWarps; ++i) {
          x[0] += share[i] * found.out[i][r][d];
          x[1] += share[i] * found.out[i][r][d + 1];
        }
        t.store(item.slab * kPoolSlab + d, p.dim, pairs, x[0], x[1]);
      }
    }
    seam::sync_block();  // stages come back
  }

  // lse and delta of keys, from a softmax over queries.
  ATTN_DEVICE static void finish_statistics(const Params& p, const Item& item, State& state) {
    state.add_up();
    ATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      float mean = state.out[0][2 * i];
      mean += seam::shuffle_xor(mean, 1);
      mean += seam::shuffle_xor(mean, 2);
      const int32_t key = item.begin + Warp::row_of(16 * seam::warp(), i);
      if (key >= item.end || seam::lane() % 4 != 0) continue;
      const int64_t at = key_index(p, item, item.unit, key);
      p.key_lse[at] = state.top[i] + std::log2(state.sum[i]);
      if (p.key_delta) p.key_delta[at] = mean / state.sum[i];
    }
  }

  ATTN_DEVICE static void finish(const Params& p, const Item& item, int64_t block, State& state, Shared& shared) {
    if constexpr (!kSums) finish_statistics(p, item, state);
    else if constexpr (kColumnWarps > 1) finish_found(p, item, block, state, shared.found);
    else finish_rows(p, item, block, state);
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    int64_t at = seam::block_x();
    Item item{};
    item.slab = at % p.slabs, at /= p.slabs;
    item.first_row = p.keys_in_rows ? -1 : static_cast<int32_t>(at % p.row_tiles) * kRows, at /= p.row_tiles;
    item.unit = at % p.units * p.block_units;
    item.head_kv = item.unit * p.share / (p.pool.heads / p.pool.heads_kv);
    const int64_t block = at / p.units, each = p.range > 0 ? p.range : 1, slots = p.parts.slots();
    const int64_t last = (block + 1) * each < slots ? (block + 1) * each : slots;
    int turn = 0;
    State state;
    state.clear();
    for (int64_t slot = block * each; slot < last; ++slot) {
      if (!open(p, slot, item)) continue;
      pass(p, item, shared, turn, state);
      if (p.range == 0) finish(p, item, block, state, shared);
    }
    if (p.range > 0) finish(p, item, block, state, shared);
  }
};

}  // namespace attn::cuda
