// Query pooling as passes of one kind (sm80/query_pool.h): weights of rows against columns, times what the columns
// carry. Rows are queries and columns keys, or the other way round:
//
//   forward   out = A v            rows: queries
//   dq        scale dS k           rows: queries
//   dv, dk    A^T dout, scale dS^T q   rows: keys
//
// Queries of the heads that share a kv head are rows side by side (a unit), so that keys are read once for all; a
// softmax over the queries is about one head, and so are its units. Long sequences are cut into parts of keys whose
// sums are added up in order afterwards. Cuts follow from a sequence's own length and from how many queries there are,
// never from the batch, so neither do the bits of a result; where the gradient of shared queries sums over sequences,
// they follow from shapes.
#pragma once

#include <initializer_list>

#include "attn/pool.h"
#include "cuda/scan_chunks.h"
#include "cuda/scratch.h"

namespace attn::cuda {

constexpr int kPoolSlab = 128;  // features of a result that a block takes; more of them are further blocks
constexpr int kPoolKeyRows = 64;

struct QueryPoolPass {
  QueryPoolParams pool;
  ScanChunks parts;  // of keys
  bool keys_in_rows;
  int64_t share;        // heads of a unit
  int64_t units;        // blocks along the heads
  int64_t block_units;  // units whose queries are columns of a block
  int64_t row_tiles, slabs;
  // Products of rows and columns: q k, and dout v where the weights are gradients (dim_y = 0: no such product).
  View4 row_x, column_x, row_y, column_y;
  int64_t dim_x, dim_y;
  View4 values;  // of columns: what is summed, `dim` features
  int64_t dim;
  // What is known before, or null: lse (natural) and delta of queries [sequences, H, M], of keys (base 2) [H, B, L], 1
  // / kept keys [sequences].
  const float *lse, *delta, *inverse_count;
  float *key_lse, *key_delta;
  bool gradient;  // weights are dS, otherwise A
  View4 out;      // of rows
  // Where sequences have several parts: [slots, H, M, dim] and, for a softmax, [slots, H, M, 2] maxima and sums.
  float *partial, *partial_softmax;
  // Consecutive parts that a block adds up, whatever their sequences; 0: none, a part is a block's own.
  int64_t range;

  ATTN_HD int64_t queries() const { return share * pool.queries; }  // of a unit
  ATTN_HD int64_t query_rows() const { return pool.heads * pool.queries; }
  ATTN_HD int64_t blocks_of_parts() const { return range > 0 ? (parts.slots() + range - 1) / range : parts.slots(); }
  // Sums of a sequence with several parts begin here. A sequence longer than a part has two slots for each `length`
  // tokens, rounded down, which is enough.
  ATTN_HD int64_t first_slot(int64_t s) const {
    return parts.cu ? 2 * parts.bound(s) / parts.length : parts.first_slot(s);
  }
  ATTN_HD int64_t partial_slots() const {
    if (range > 0) return blocks_of_parts();
    if (parts.tokens <= parts.length) return 0;  // no sequence has several
    return parts.cu ? 2 * parts.tokens / parts.length + 2 : parts.slots();
  }
};

inline int64_t pool_share(const QueryPoolParams& p) {
  return p.activation == PoolActivation::softmax_queries || p.heads_kv == 0 ? 1 : p.heads / p.heads_kv;
}

// Keys of a part: the sums that it writes are to be few against the keys that it reads.
inline int64_t pool_part(const QueryPoolParams& p) {
  const int64_t n = (8 * pool_share(p) * p.queries + 127) / 128 * 128;
  return n < 256 ? 256 : n;
}

inline ScanChunks pool_parts(const QueryPoolParams& p, int64_t length) {
  return {p.sequences.cu, p.sequences.count, p.sequences.tokens, length};
}

// A pass whose rows are queries; blocks have few of them, or tiles of 64.
constexpr int64_t kFewPoolRows = 16;
inline bool few_pool_rows(const QueryPoolPass& s) { return s.queries() <= kFewPoolRows; }

inline QueryPoolPass query_rows_pass(const QueryPoolParams& p, int64_t dim) {
  QueryPoolPass s{};
  s.pool = p;
  s.parts = pool_parts(p, pool_part(p));
  s.share = pool_share(p);
  s.units = p.heads / s.share;
  s.block_units = 1;
  const int64_t tile = few_pool_rows(s) ? kFewPoolRows : 64;
  s.row_tiles = (s.queries() + tile - 1) / tile;
  s.dim = dim;
  s.slabs = (dim + kPoolSlab - 1) / kPoolSlab;
  s.row_x = p.q;
  s.column_x = p.k;
  s.dim_x = p.dim;
  return s;
}

// A pass whose rows are keys; for all units of a kv head or, `apart`, for each.
inline QueryPoolPass key_rows_pass(const QueryPoolParams& p, int64_t dim, bool apart) {
  QueryPoolPass s{};
  s.pool = p;
  s.parts = pool_parts(p, kPoolKeyRows);
  s.keys_in_rows = true;
  s.share = pool_share(p);
  s.units = apart ? p.heads / s.share : p.heads_kv;
  s.block_units = apart || p.heads_kv == 0 ? 1 : p.heads / p.heads_kv / s.share;
  s.row_tiles = 1;
  s.dim = dim;
  s.slabs = dim > 0 ? (dim + kPoolSlab - 1) / kPoolSlab : 1;
  s.row_x = p.k;
  s.column_x = p.q;
  s.dim_x = p.dim;
  return s;
}

// What a call is made of, in the order of launches.
struct QueryPoolForward {
  float* inverse_count = nullptr;  // relu_mean with a mask
  QueryPoolPass statistics{}, sums{};
  int64_t scratch = 0;

  explicit QueryPoolForward(const QueryPoolParams& p, float* memory = nullptr) {
    ScratchPieces z(memory);
    const bool over_queries = p.activation == PoolActivation::softmax_queries;
    if (p.activation == PoolActivation::relu_mean && p.mask.data) inverse_count = z.take(p.sequences.count);
    statistics = key_rows_pass(p, 0, true);
    if (over_queries) statistics.key_lse = z.take(p.heads * p.sequences.batch * p.sequences.tokens);
    sums = query_rows_pass(p, p.dim_v);
    sums.key_lse = statistics.key_lse;
    sums.inverse_count = inverse_count;
    sums.values = p.v;
    const int64_t head = p.queries * p.dim_v;
    sums.out = {p.out, p.heads * head, head, p.dim_v};
    const int64_t rows = sums.partial_slots() * sums.query_rows();
    sums.partial = z.take(rows * p.dim_v);
    if (p.activation == PoolActivation::softmax_keys) sums.partial_softmax = z.take(2 * rows);
    scratch = z.used();
  }
};

inline int64_t query_pool_scratch(const QueryPoolParams& p) { return QueryPoolForward(p).scratch; }

struct QueryPoolBackward {
  float* inverse_count = nullptr;
  float* delta = nullptr;  // of queries, softmax over keys
  View4 dout;
  QueryPoolPass statistics{}, dq{}, dk{}, dv{};  // run where they have an `out` (statistics: key_lse)
  int64_t scratch = 0;

  explicit QueryPoolBackward(const QueryPoolBackwardParams& b, float* memory = nullptr) : dout(b.dout) {
    const QueryPoolParams& p = b.forward;
    ScratchPieces z(memory);
    const int64_t keys = p.heads * p.sequences.batch * p.sequences.tokens;
    if (p.activation == PoolActivation::relu_mean && p.mask.data) inverse_count = z.take(p.sequences.count);
    if (p.activation == PoolActivation::softmax_keys) delta = z.take(p.sequences.count * p.heads * p.queries);
    statistics = key_rows_pass(p, 0, true);
    if (p.activation == PoolActivation::softmax_queries) {
      statistics.key_lse = z.take(keys);
      statistics.key_delta = z.take(keys);
    }
    dq = query_rows_pass(p, p.dim);
    dk = key_rows_pass(p, p.dim, false);
    dv = key_rows_pass(p, p.dim_v, false);
    dq.values = p.k;
    dk.values = p.q;
    dv.values = b.dout;
    for (QueryPoolPass* s : {&statistics, &dq, &dk, &dv}) {
      s->lse = static_cast<const float*>(p.lse);
      s->delta = delta;
      s->key_lse = statistics.key_lse;
      s->key_delta = statistics.key_delta;
      s->inverse_count = inverse_count;
      s->gradient = s != &dv;
      if (s == &dv) continue;
      s->row_y = s->keys_in_rows ? p.v : b.dout;
      s->column_y = s->keys_in_rows ? b.dout : p.v;
      s->dim_y = p.dim_v;
    }
    dk.out = b.dk;
    dv.out = b.dv;
    const int64_t head = p.queries * p.dim;
    dq.out = {b.dq, p.heads * head, head, p.dim};
    if (b.shared) {
      constexpr int64_t kBlocks = 1024;  // several times what a GPU runs at once
      const int64_t slots = dq.parts.slots(), others = dq.units * dq.row_tiles * dq.slabs;
      const int64_t blocks = others >= kBlocks || others == 0 ? 1 : kBlocks / others;
      dq.range = slots > blocks ? (slots + blocks - 1) / blocks : 1;
    }
    if (b.dq) dq.partial = z.take(dq.partial_slots() * dq.query_rows() * p.dim);
    scratch = z.used();
  }
};

inline int64_t query_pool_scratch(const QueryPoolBackwardParams& b) { return QueryPoolBackward(b).scratch; }

}  // namespace attn::cuda
