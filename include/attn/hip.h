// HiP's tree search (arXiv 2406.09827) as index arithmetic that every backend shares: which keys are candidates, how
// nodes are cut and halved, which block speaks for a node, and how scores compare. Node positions and sizes count
// blocks of block_k keys.
#pragma once

#include <cstring>

#include "attn/params.h"

namespace attn {

// Pads HipSelection's index lists.
constexpr int32_t kSelectionPad = INT32_MAX;

// A run of candidate blocks.
struct HipNode { int32_t start, size; };

// What the search does for one query block.
struct HipSearch {
  int32_t q_begin, q_end;  // its rows
  int32_t samples;         // rows that are scored, see hip_sample
  int32_t visible;         // keys its last row sees
  int32_t blocks;          // candidate blocks
  int32_t nodes;           // beam width
  int32_t rounds;          // 0: the first `count` blocks are listed without a search
  int32_t count;           // entries of the resulting list
};

}  // namespace attn

ATTN_NAMESPACE_BEGIN

ATTN_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ATTN_HD int64_t hip_query_blocks(const SelectParams& p) { return ceil_div(p.tq, p.block_q); }

// Length of an index list.
ATTN_HD int64_t hip_list_length(const SelectParams& p) { return ceil_div(p.mask_k, p.block_k); }

ATTN_HD int64_t hip_samples_at_most(const SelectParams& p) {
  const int64_t rows = p.block_q < p.tq ? p.block_q : p.tq;
  return rows < p.stride_q ? 1 : rows / p.stride_q;
}

// Halvings until a node holds one block: the smallest r with nodes * 2^r >= blocks.
ATTN_HD int32_t hip_rounds(int64_t nodes, int64_t blocks) {
  int32_t r = 0;
  while (nodes << r < blocks) ++r;
  return r;
}

ATTN_HD HipSearch hip_search(const SelectParams& p, int64_t block_row) {
  HipSearch s;
  const int64_t begin = block_row * p.block_q, end = begin + p.block_q < p.tq ? begin + p.block_q : p.tq;
  s.q_begin = static_cast<int32_t>(begin);
  s.q_end = static_cast<int32_t>(end);
  const int64_t full = (end - begin) / p.stride_q;
  s.samples = static_cast<int32_t>(full > 0 ? full : 1);
  int64_t visible = p.causal ? end + p.tk - p.tq : p.tk;
  visible = visible < 0 ? 0 : visible > p.tk ? p.tk : visible;
  s.visible = static_cast<int32_t>(visible);
  const int64_t candidates = visible > p.window ? visible - p.window : 0;
  const int64_t blocks = ceil_div(candidates, p.block_k), nodes = hip_list_length(p);
  s.blocks = static_cast<int32_t>(blocks);
  s.nodes = static_cast<int32_t>(nodes);
  const bool all = candidates <= p.mask_k || nodes == 0;
  s.rounds = all ? 0 : hip_rounds(nodes, blocks);
  s.count = static_cast<int32_t>(blocks < nodes ? blocks : nodes);
  return s;
}

// The i-th scored row: rows stride - 1, 2 * stride - 1, ... of the block; its last row if it is shorter than that.
ATTN_HD int32_t hip_sample(const SelectParams& p, const HipSearch& s, int32_t i) {
  const int64_t row = s.q_begin + (i + 1) * p.stride_q - 1;
  return static_cast<int32_t>(row < s.q_end ? row : s.q_end - 1);
}

// Node i of the first round. With blocks >= nodes none is empty.
ATTN_HD HipNode hip_node(const HipSearch& s, int32_t i) {
  const int64_t start = static_cast<int64_t>(i) * s.blocks / s.nodes;
  const int64_t next = (static_cast<int64_t>(i) + 1) * s.blocks / s.nodes;
  return {static_cast<int32_t>(start), static_cast<int32_t>(next - start)};
}

// Halves. A single block's left half is empty; empty nodes are never scored nor kept.
ATTN_HD HipNode hip_left(HipNode n) { return {n.start, n.size / 2}; }
ATTN_HD HipNode hip_right(HipNode n) { return {n.start + n.size / 2, n.size - n.size / 2}; }

// The block whose score is the node's.
ATTN_HD int32_t hip_representative(HipNode n, bool center) { return center ? n.start + n.size / 2 : n.start; }

// A score as an integer that orders the same way: -0 equals +0, NaN must have been replaced by -inf. Every score is
// above kNoScore.
constexpr int32_t kNoScore = INT32_MIN;
ATTN_HD int32_t hip_order(float score) {
  int32_t bits;
  memcpy(&bits, &score, sizeof bits);
  if (bits == INT32_MIN) bits = 0;
  return bits < 0 ? bits ^ INT32_MAX : bits;
}

ATTN_NAMESPACE_END
