// HiP's block selection (attn/hip.h) on the device: a block takes one list, the nodes of its search stay in shared
// memory through all rounds. A round scores the halves of the nodes, 64 keys at a time (dot_max.h), and keeps the best
// by a search for the score of the last that is kept, a bit at a time; everything is exact in the order of indices,
// so the list is that of the definition, whatever runs beside it. Nothing goes through the host.
//
// A round reads 2 nodes x block_k keys and multiplies each with the sampled rows: at the defaults (256 nodes, 2 keys,
// 32 rows, kDim = 128) 256 KiB and 16 M multiply-adds for each of log2(blocks / nodes) rounds. Lists of neighbouring
// query blocks read mostly the same keys, so those come from L2 and tensor cores are the floor. Halves that have their
// parent's representative keep its score, as on the CPU.
//
// Shared memory: 28 bytes a node, and 24, 48 or 96 KiB (16, 32 or 64 in float32) of queries and keys.
#pragma once

#include "attn/hip.h"
#include "attn/schedule.h"
#include "cuda/grid.h"
#include "cuda/hip_nodes.h"
#include "cuda/sm80/dot_max.h"

namespace attn::cuda {

// kDim: 64, 128 or 256, at least the features. kNodes: at least hip_nodes(params).
template <class T, int kDim, int kNodes> struct HipSelect {
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kMine = 2 * kNodes / kThreads;  // halves of a thread: every kThreads-th
  using Dots = DotMax<T, kDim, kThreads>;
  static constexpr int kRows = Dots::kRows, kKeys = Dots::kKeys, kStages = Dots::kStages, kTiles = kStages + 2;
  using Params = SelectParams;

  struct Tile {
    int64_t row[kKeys];   // where the key begins in its kv head, in elements; -1: no key
    int32_t half[kKeys];  // whose score it is part of, or -1
  };
  struct Shared {
    typename Dots::Shared dots;
    HipNode node[2][kNodes];
    int32_t score[kNodes];     // of nodes
    int32_t half[2 * kNodes];  // scores of their halves, left and right; kNoScore: empty or not known yet
    Tile tile[kTiles];
    int32_t order[2][Dots::kParts][kKeys];  // hip_order of the keys of the tile and of the one before
    int32_t total[2][kWarps];
    uint32_t rank[kMine][kWarps];
  };

  // What a list is about.
  struct List {
    HipSearch search;
    int64_t batch, first_head;
    int64_t group, kv_heads, heads_per_kv;  // query heads of a kv head; kv heads it reads, query heads of each
    int32_t rows;                           // sampled rows of a kv head
  };

  static Grid grid(const Params& p) { return {p.batch * p.heads_mask * hip_query_blocks(p)}; }

  ATTN_DEVICE static HipNode half_of(HipNode n, int32_t side) { return side ? hip_right(n) : hip_left(n); }

  ATTN_DEVICE static void load_queries(const Params& p, const List& list, int64_t kv, int32_t first, Shared& shared) {
    const int32_t last = min_i32(list.rows, first + kRows) - 1;
    Dots::load_queries(shared.dots, p.q, static_cast<const T*>(p.q.data) + list.batch * p.q.batch,
                       static_cast<int>(p.dim), [&](int r) {
                         const int32_t at = min_i32(first + r, last);  // lanes past the last row must add no score
                         const int64_t head = list.first_head + kv * list.group + at / list.search.samples;
                         return head * p.q.head + hip_sample(p, list.search, at % list.search.samples) * p.q.token;
                       });
  }

  // A half has its parent's score if it has its representative.
  ATTN_DEVICE static bool known(const Params& p, HipNode parent, HipNode half) {
    return half.size == 0 || hip_representative(half, p.center) == hip_representative(parent, p.center);
  }

  // What a round scores: halves of `count` nodes, block_k keys each. After the first round of "first", left halves have
  // their parents' scores and aren't listed.
  struct Round {
    const HipNode* node;
    int32_t nodes;
    bool first, right_only;
    int64_t keys;
  };
  ATTN_DEVICE static Round round_of(const Params& p, const List& list, int32_t r, const HipNode* node) {
    const bool right_only = r > 0 && !p.center;
    const int64_t halves = right_only ? list.search.nodes : 2 * list.search.nodes;
    return {node, list.search.nodes, r == 0, right_only, halves * p.block_k};
  }

  // Keys [first, first + kKeys) of the round, those of a half after each other.
  ATTN_DEVICE static void fill(const Params& p, const List& list, const Round& round, int64_t first, Tile& t) {
    const int i = seam::thread();
    if (i >= kKeys) return;
    t.row[i] = -1;
    t.half[i] = -1;
    if (first + i >= round.keys) return;
    const int64_t unit = (first + i) / p.block_k;
    const int32_t h = static_cast<int32_t>(round.right_only ? 2 * unit + 1 : unit);
    const HipNode parent = round.node[h / 2], n = half_of(parent, h % 2);
    if (n.size == 0 || (!round.first && known(p, parent, n))) return;
    const int64_t key = hip_representative(n, p.center) * p.block_k + (first + i) % p.block_k;
    if (key >= list.search.visible) return;
    t.row[i] = key * p.k.token;
    t.half[i] = h;
  }

  // Raises the scores of halves to those of a tile's keys. The first key of each speaks for all.
  ATTN_DEVICE static void fold(const Tile& t, const int32_t (&order)[Dots::kParts][kKeys], int32_t* score) {
    const int i = seam::thread();
    const int32_t h = i < kKeys ? t.half[i] : -1;
    if (h < 0 || (i > 0 && t.half[i - 1] == h)) return;
    int32_t best = score[h];
    for (int j = i; j < kKeys && t.half[j] == h; ++j) {
      ATTN_UNROLL
      for (int part = 0; part < Dots::kParts; ++part) best = max_i32(best, order[part][j]);
    }
    score[h] = best;
  }

  // Scores the round's keys with `rows` rows of a kv head. A ring of tiles as in Decode, one barrier a tile: one is
  // folded, one multiplied, one on its way, one listed.
  ATTN_DEVICE static void score_keys(const Params& p, const List& list, const Round& round, int64_t kv, int rows,
                                     Shared& shared) {
    const T* keys =
        static_cast<const T*>(p.k.data) + list.batch * p.k.batch + (list.first_head / list.group + kv) * p.k.head;
    const int dim = static_cast<int>(p.dim);
    const int64_t tiles = ceil_div(round.keys, kKeys);
    auto tile = [&](int64_t i) -> Tile& { return shared.tile[i % kTiles]; };
    auto list_keys = [&](int64_t i) {
      if (i < tiles) fill(p, list, round, i * kKeys, tile(i));
    };
    auto load = [&](int64_t i) {
      if (i < tiles) Dots::load_keys(shared.dots, static_cast<int>(i % kStages), p.k, keys, dim, tile(i).row);
      seam::copy_commit();
    };
    list_keys(0);
    list_keys(1);
    seam::sync_block();
    load(0);
    for (int64_t i = 0; i < tiles; ++i) {
      seam::copy_wait<0>();
      seam::sync_block();
      load(i + 1);
      list_keys(i + 2);
      if (i > 0) fold(tile(i - 1), shared.order[(i - 1) % 2], shared.half);
      Dots::run(shared.dots, static_cast<int>(i % kStages), rows, keys, dim, tile(i).row,
                [&](int part, int key, float x) { shared.order[i % 2][part][key] = hip_order(x); });
    }
    seam::sync_block();
    fold(tile(tiles - 1), shared.order[(tiles - 1) % 2], shared.half);
    seam::sync_block();
  }

  // Scores of all halves. Queries are loaded once where they fit.
  ATTN_DEVICE static void score_halves(const Params& p, const List& list, const Round& round, Shared& shared) {
    for (int32_t h = seam::thread(); h < 2 * round.nodes; h += kThreads) {
      const HipNode parent = round.node[h / 2];
      const bool same = !round.first && half_of(parent, h % 2).size > 0 && known(p, parent, half_of(parent, h % 2));
      shared.half[h] = same ? shared.score[h / 2] : kNoScore;
    }
    const bool loaded = !round.first && list.kv_heads == 1 && list.rows <= kRows;
    for (int64_t kv = 0; kv < list.kv_heads; ++kv) {
      for (int32_t first = 0; first < list.rows; first += kRows) {
        if (!loaded) load_queries(p, list, kv, first, shared);
        score_keys(p, list, round, kv, min_i32(kRows, list.rows - first), shared);
      }
    }
  }

  // Of the halves' scores the one that the `keep`-th best has, or a bound that as many reach: see mth_largest of
  // cpu/hip_select.h, whose result this is.
  ATTN_DEVICE static int32_t least_kept(const int32_t (&mine)[kMine], int32_t keep, Shared& shared) {
    constexpr uint32_t kBias = 1u << 31;
    uint32_t t = 0;
    int turn = 0;
    ATTN_ROLLED
    for (uint32_t bit = kBias; bit != 0; bit >>= 1, turn ^= 1) {
      const int32_t bound = static_cast<int32_t>((t | bit) ^ kBias);
      int32_t count = 0;
      ATTN_UNROLL
      for (int i = 0; i < kMine; ++i) count += mine[i] >= bound;
      count = seam::reduce_add(count);
      if (seam::lane() == 0) shared.total[turn][seam::warp()] = count;
      seam::sync_block();
      count = 0;
      for (int w = 0; w < kWarps; ++w) count += shared.total[turn][w];
      if (count >= keep) t |= bit;
      if (count == keep) break;
    }
    return static_cast<int32_t>(t ^ kBias);
  }

  // Keeps the best `nodes` halves in their order, earlier ones first among equals.
  ATTN_DEVICE static void keep_best(const Round& round, Shared& shared, HipNode* to) {
    int32_t mine[kMine];
    ATTN_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int32_t h = i * kThreads + seam::thread();
      mine[i] = h < 2 * round.nodes ? shared.half[h] : kNoScore;
    }
    const int32_t bound = least_kept(mine, round.nodes, shared);
    // Halves above the bound in the low half of a word, those equal to it in the high one.
    constexpr int kShift = 16;
    static_assert(2 * kNodes < 1 << kShift);
    const uint32_t lanes_before = (1u << seam::lane()) - 1;
    uint32_t before[kMine];
    ATTN_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const uint32_t above = seam::ballot(mine[i] > bound), equal = seam::ballot(mine[i] == bound);
      before[i] = seam::popcount(above & lanes_before) | seam::popcount(equal & lanes_before) << kShift;
      if (seam::lane() == 0) shared.rank[i][seam::warp()] = seam::popcount(above) | seam::popcount(equal) << kShift;
    }
    seam::sync_block();
    uint32_t sum = 0;
    ATTN_UNROLL
    for (int i = 0; i < kMine; ++i) {
      for (int w = 0; w < kWarps; ++w) {
        if (w == seam::warp()) before[i] += sum;
        sum += shared.rank[i][w];
      }
    }
    constexpr uint32_t kLow = (1u << kShift) - 1;
    const uint32_t ties = static_cast<uint32_t>(round.nodes) - (sum & kLow);
    ATTN_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const uint32_t at = before[i], equals = at >> kShift;
      const bool tie = mine[i] == bound && equals < ties;
      if (mine[i] <= bound && !tie) continue;
      const int32_t h = i * kThreads + seam::thread();
      const uint32_t place = (at & kLow) + (equals < ties ? equals : ties);
      to[place] = half_of(round.node[h / 2], h % 2);
      shared.score[place] = mine[i];
    }
    seam::sync_block();
  }

  ATTN_DEVICE static List open(const Params& p, int64_t& at) {
    // The last query blocks first: under a causal mask they have the most rounds.
    const int64_t blocks = hip_query_blocks(p), which = seam::block_x() / blocks,
                  block_row = blocks - 1 - seam::block_x() % blocks, share = p.heads / p.heads_mask;
    at = which * blocks + block_row;
    List list;
    list.search = hip_search(p, block_row);
    list.batch = which / p.heads_mask;
    list.first_head = which % p.heads_mask * share;
    list.group = p.heads / p.heads_kv;
    list.kv_heads = share > list.group ? share / list.group : 1;
    list.heads_per_kv = share > list.group ? list.group : share;
    list.rows = static_cast<int32_t>(list.heads_per_kv * list.search.samples);
    return list;
  }

  ATTN_DEVICE static void run(const Params& p, Shared& shared) {
    int64_t at;
    const List list = open(p, at);
    const int64_t length = hip_list_length(p);
    const int32_t count = list.search.count;
    int32_t* index = p.index + at * length;
    if (seam::thread() == 0) p.count[at] = count;
    for (int64_t i = count + seam::thread(); i < length; i += kThreads) index[i] = kSelectionPad;
    if (list.search.rounds == 0) {
      for (int32_t i = seam::thread(); i < count; i += kThreads) index[i] = static_cast<int32_t>(i * p.block_k);
      return;
    }
    for (int32_t i = seam::thread(); i < list.search.nodes; i += kThreads) shared.node[0][i] = hip_node(list.search, i);
    seam::sync_block();
    int turn = 0;
    for (int32_t r = 0; r < list.search.rounds; ++r, turn ^= 1) {
      const Round round = round_of(p, list, r, shared.node[turn]);
      score_halves(p, list, round, shared);
      keep_best(round, shared, shared.node[turn ^ 1]);
    }
    for (int32_t i = seam::thread(); i < count; i += kThreads)
      index[i] = static_cast<int32_t>(shared.node[turn][i].start * p.block_k);
  }
};

}  // namespace attn::cuda
