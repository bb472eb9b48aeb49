// HiP's block selection: for each query block, the tree search of attn/hip.h. Sampled query rows of all heads that
// share a list lie in SIMD lanes; keys of the nodes' representative blocks are broadcast, from where they lie if their
// type allows.
//
// Cost of an item: rounds x 2 nodes x block_k keys x rows dot products, rows = sampled rows times heads sharing the
// list. Halves whose representative is their parent's keep the parent's score: with "first" every left half, with
// "center" the right halves of nodes of one or two blocks. A score depends on its block alone, so the reuse is exact.
#pragma once

#include "attn/hip.h"
#include "attn/parallel.h"
#include "cpu/dot_max.h"
#include "cpu/pack.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN

struct ScoredNode {
  HipNode node;
  int32_t score;  // hip_order of the representative block's score
};

// Of `n` scores the value of the m-th largest, 1 <= m <= n; `score` is padded with kNoScore to whole vectors. When
// exactly m scores reach a lower bound of it, that bound is returned: it selects the same entries.
inline int32_t mth_largest(const int32_t* score, int32_t n, int32_t m) {
  constexpr int L = Lanes<int32_t>::n;
  auto reaching = [&](int32_t bound) {
    i32v found{};
    for (int32_t i = 0; i < n; i += L) found -= load(score + i) >= bound;
    int32_t total = 0;
    for (int i = 0; i < L; ++i) total += found[i];
    return total;
  };
  uint32_t t = 0;  // biased: t ^ 2^31 is the bound
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    const int32_t bound = static_cast<int32_t>((t | bit) ^ (1u << 31));
    const int32_t count = reaching(bound);
    if (count >= m) t |= bit;
    if (count == m) break;
  }
  return static_cast<int32_t>(t ^ (1u << 31));
}

// hip_order of a vector of scores. float64 scores are compared as float32, so that every input type has one notion of
// a tie.
ATTN_INLINE i32v ordered(const float* score) {
  const i32v bits = bit_cast<i32v>(load(score)), plain = bits == kNoScore ? i32v{} : bits;
  return plain < 0 ? plain ^ INT32_MAX : plain;
}
ATTN_INLINE i32v ordered(const double* score) {
  i32v x;
  for (int i = 0; i < Lanes<int32_t>::n; ++i) x[i] = hip_order(static_cast<float>(score[i]));
  return x;
}

// Can rows of a tensor be read as operand rows where they lie?
template <class T, class In> inline bool rows_are_operands(const View4& x, int64_t dim) {
  constexpr int64_t pair = kPair<T>;
  return sizeof(In) * pair == sizeof(T) && reinterpret_cast<uintptr_t>(x.data) % sizeof(T) == 0 && dim % pair == 0 &&
         x.token % pair == 0 && x.head % pair == 0 && x.batch % pair == 0;
}

template <class In> struct SelectItem {
  using T = Operand<In>;
  using A = Acc<T>;
  static constexpr int W = kPanel<T>, L = kLanes<T>;
  // Keys of a tile. They, their maxima and a panel of queries stay in L1; the next tile is prefetched meanwhile.
  static constexpr int kKeys = 96;
  static_assert(kKeys % kDotRows == 0, "whole dot blocks");

  const SelectParams& p;
  const int64_t depth;
  const int64_t group;         // query heads of a kv head
  const int64_t share;         // query heads that share a list
  const int64_t kv_heads;      // kv heads they read
  const int64_t heads_per_kv;  // of the `share` heads
  const int64_t max_rows;      // lanes a kv head takes, padded to panels
  HipSearch search;
  int64_t batch, first_head;
  ScoredNode* nodes;  // one to spare: the round writes before it knows
  HipNode* halves;
  int32_t* score;      // of halves, padded to whole vectors
  int32_t* first_key;  // of a half's keys in `key`, or -1 where the score is known
  int32_t* key;        // keys to score; those of a half follow each other
  int32_t* order;      // hip_order of their scores, in whole vectors
  T *q, *k;
  const T** row;  // keys of the tile: into k, or into the tensor
  A *top, *best;
  const bool in_place;

  SelectItem(const SelectParams& params, Carve& c)
      : p(params), depth(depth_of<T>(p.dim)), group(p.heads / p.heads_kv), share(p.heads / p.heads_mask),
        kv_heads(share > group ? share / group : 1), heads_per_kv(share > group ? group : share),
        max_rows(ceil_div(heads_per_kv * hip_samples_at_most(p), W) * W),
        in_place(rows_are_operands<T, In>(p.k, p.dim)) {
    // A search never holds more nodes than there are blocks, however large mask_k is.
    const int64_t all = ceil_div(p.tk, p.block_k), m = hip_list_length(p) < all ? hip_list_length(p) : all;
    const int64_t keys = 2 * m * p.block_k;
    nodes = c.take<ScoredNode>(m + 1);
    halves = c.take<HipNode>(2 * m);
    score = c.take<int32_t>(2 * m + Lanes<int32_t>::n);
    first_key = c.take<int32_t>(2 * m + 1);
    key = c.take<int32_t>(keys);
    order = c.take<int32_t>(keys + kKeys);
    q = c.take<T>(kv_heads * max_rows * depth);
    k = c.take<T>(kKeys * depth);
    row = c.take<const T*>(kKeys);
    top = c.take<A>(kKeys * L);
    best = c.take<A>(kKeys + Lanes<int32_t>::n);
  }

  int64_t rows() const { return heads_per_kv * search.samples; }

  // Lanes past the last row repeat it: they must not add a score of their own.
  void load_queries() {
    for (int64_t h = 0; h < kv_heads; ++h) {
      for (int64_t first = 0; first < rows(); first += W) {
        const int64_t width = rows() - first <= L ? L : W;
        auto sampled_row = [&](int64_t lane) {
          const int64_t r = first + lane < rows() ? first + lane : rows() - 1;
          const int64_t head = first_head + h * group + r / search.samples;
          return static_cast<const In*>(p.q.data) + batch * p.q.batch + head * p.q.head +
                 hip_sample(p, search, static_cast<int32_t>(r % search.samples)) * p.q.token;
        };
        pack_panel<T, In>(sampled_row, width, p.dim, q + (h * max_rows + first) * depth, width);
      }
    }
  }

  const In* keys_of(int64_t h) const {
    return static_cast<const In*>(p.k.data) + batch * p.k.batch + ((first_head / group) + h) * p.k.head;
  }

  void prefetch(const In* base, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const char* row = reinterpret_cast<const char*>(base + key[i] * p.k.token);
      for (int64_t byte = 0; byte < p.dim * static_cast<int64_t>(sizeof(In)); byte += 64)
        __builtin_prefetch(row + byte);
    }
  }

  // Sets order[i], or raises it where `h` isn't the first kv head, for keys [first, first + n). `next` are the keys to
  // prefetch meanwhile.
  void tile(int64_t h, int64_t first, int64_t n, const In* next, int64_t next_begin, int64_t next_end) {
    const In* base = keys_of(h);
    if (in_place) {
      for (int64_t i = 0; i < n; ++i) row[i] = reinterpret_cast<const T*>(base + key[first + i] * p.k.token);
    } else {
      for (int64_t i = 0; i < n; ++i) {
        Pack<T, In>::row(base + key[first + i] * p.k.token, p.dim, k + i * depth, depth);
        row[i] = k + i * depth;
      }
    }
    const T* panels = q + h * max_rows * depth;
    const int64_t steps = ceil_div(rows(), W) * (n / kDotRows + 1), each = ceil_div(next_end - next_begin, steps);
    auto prefetch_some = [&] {
      const int64_t end = next_begin + each < next_end ? next_begin + each : next_end;
      prefetch(next, next_begin, end);
      next_begin = end;
    };
    for (int64_t r = 0; r < rows(); r += W) {
      const bool fresh = r == 0;
      if (rows() - r <= L) dot_max_panel<T, 1>(row, n, depth, panels + r * depth, fresh, top, prefetch_some);
      else dot_max_panel<T, 2>(row, n, depth, panels + r * depth, fresh, top, prefetch_some);
    }
    lane_maxima<A>(top, n, best);
    int32_t* to = order + first;
    for (int64_t i = 0; i < n; i += Lanes<int32_t>::n) {  // the overhang is written again by the next tile
      i32v now = ordered(best + i);
      if (h > 0) now = vmax(now, load(to + i));
      store(to + i, now);
    }
  }

  void score_keys(int64_t count) {
    prefetch(keys_of(0), 0, count < kKeys ? count : kKeys);
    for (int64_t first = 0; first < count; first += kKeys) {
      const int64_t n = count - first < kKeys ? count - first : kKeys;
      for (int64_t h = 0; h < kv_heads; ++h) {
        const bool same_keys = h + 1 < kv_heads;
        const int64_t begin = same_keys ? first : first + n;
        const int64_t end = begin + kKeys < count ? begin + kKeys : count;
        tile(h, first, n, keys_of(same_keys ? h + 1 : 0), begin, end);
      }
    }
  }

  // Cuts every node, scores the halves and keeps the best of them, earlier ones first among equals. Which halves win
  // is anybody's guess, so nothing here branches on it.
  void round(bool parents_scored) {
    int32_t count = 0, keys = 0;
    for (int32_t i = 0; i < search.nodes; ++i) {
      const ScoredNode parent = nodes[i];
      const int32_t known = parents_scored ? hip_representative(parent.node, p.center) : -1;
      const HipNode both[] = {hip_left(parent.node), hip_right(parent.node)};
      for (const HipNode& half : both) {
        if (half.size == 0) continue;
        const int32_t block = hip_representative(half, p.center);
        halves[count] = half;
        score[count] = parent.score;
        first_key[count++] = block == known ? -1 : keys;
        if (block == known) continue;
        const int64_t begin = block * p.block_k,
                      end = begin + p.block_k < search.visible ? begin + p.block_k : search.visible;
        for (int64_t j = begin; j < end; ++j) key[keys++] = static_cast<int32_t>(j);
      }
    }
    score_keys(keys);
    // A half's keys end where those of the next scored half begin.
    for (int32_t i = count - 1, end = keys; i >= 0; --i) {
      if (first_key[i] < 0) continue;
      int32_t best_key = kNoScore;
      for (int32_t j = first_key[i]; j < end; ++j) best_key = best_key > order[j] ? best_key : order[j];
      score[i] = best_key;
      end = first_key[i];
    }
    for (int i = 0; i < Lanes<int32_t>::n; ++i) score[count + i] = kNoScore;
    const int32_t bound = mth_largest(score, count, search.nodes);
    int32_t above = 0;
    for (int32_t i = 0; i < count; ++i) above += score[i] > bound;
    int32_t ties = search.nodes - above, kept = 0;
    for (int32_t i = 0; i < count; ++i) {
      const int32_t tie = score[i] == bound, taken = tie & (ties > 0);
      nodes[kept].node = halves[i];
      nodes[kept].score = score[i];
      ties -= taken;
      kept += taken | (score[i] > bound);
    }
  }

  // hip_node(search, i) for every i, by running remainder: a division each would be felt.
  void first_nodes() {
    const int32_t size = search.blocks / search.nodes, rest = search.blocks % search.nodes;
    int64_t remainder = 0;
    int32_t start = 0;
    for (int32_t i = 0; i < search.nodes; ++i) {
      remainder += rest;
      const int32_t longer = remainder >= search.nodes;
      remainder -= longer ? search.nodes : 0;
      nodes[i].node = HipNode{start, size + longer};
      start += size + longer;
    }
  }

  void run(int64_t batch_index, int64_t mask_head, int64_t block_row) {
    batch = batch_index;
    first_head = mask_head * share;
    search = hip_search(p, block_row);
    const int64_t at = (batch * p.heads_mask + mask_head) * hip_query_blocks(p) + block_row,
                  length = hip_list_length(p);
    int32_t* index = p.index + at * length;
    p.count[at] = search.count;
    for (int64_t i = search.count; i < length; ++i) index[i] = kSelectionPad;
    if (search.rounds > 0) {
      first_nodes();
      load_queries();
    } else {
      for (int32_t i = 0; i < search.count; ++i) nodes[i].node = HipNode{i, 1};
    }
    for (int32_t r = 0; r < search.rounds; ++r) round(r > 0);
    for (int32_t i = 0; i < search.count; ++i) index[i] = static_cast<int32_t>(nodes[i].node.start * p.block_k);
  }
};

template <class In> inline void hip_select_as(const SelectParams& p) {
  const int64_t blocks = hip_query_blocks(p), items = p.batch * p.heads_mask * blocks;
  if (items == 0) return;
  Carve size{nullptr};
  SelectItem<In> probe(p, size);
  parallel_items(items, [&](int64_t index, int) {
    Carve c{static_cast<char*>(thread_scratch(size.used))};
    SelectItem<In> item(p, c);
    // A head's blocks follow each other (its keys stay in cache), the last first: under a causal mask it has the most
    // rounds, and the queue ends with short items.
    const int64_t list = index / blocks;
    item.run(list / p.heads_mask, list % p.heads_mask, blocks - 1 - index % blocks);
  });
}

// Fills p.index and p.count. Scores are float32 (float64 inputs: summed in float64, rounded to float32 to compare);
// NaN counts as -inf; equal scores go to the earlier block.
inline void hip_select(const SelectParams& p) {
  switch (p.dtype) {
    case DType::f32: return hip_select_as<float>(p);
    case DType::f64: return hip_select_as<double>(p);
    case DType::bf16: return hip_select_as<bf16>(p);
    case DType::f16: return hip_select_as<f16>(p);
  }
}

ATTN_NAMESPACE_END
