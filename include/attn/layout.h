// BlockLayout's lists: built from a block mask, and transposed (which query blocks see a key block), bit tiles too.
// Lists have their greatest width: nobody looks at values to find a better one.
#pragma once

#include "attn/params.h"

namespace attn {

// Contiguous lists [lists, width] that are written; entries past the count are 0, their slots -1.
struct ListsOut {
  int32_t* count;  // null: not wanted
  int32_t* index;
  int32_t* slot;  // null: no tiles
};

struct LayoutBuildParams {
  const uint8_t* mask;  // [B, H, M, N], nonzero: kept; bytes of a row are neighbours
  int64_t mask_batch, mask_head, mask_row;
  int64_t batch, heads, rows, columns;
  ListsOut out;  // [B, H, M, N]
};

// Lists of `layout`, [batch, heads, rows, width] -> lists [batch, heads, columns, rows]. batch and heads are the
// layout's own: 1 where they are shared.
struct LayoutTransposeParams {
  LayoutView layout;
  int64_t batch, heads, rows, columns;
  ListsOut out, full;
};

// Bit tiles [slots, block_q, ceil(block_k / 32)] -> [slots, block_k, ceil(block_q / 32)].
struct TilesTransposeParams {
  const int32_t* bits;
  int64_t slots, block_q, block_k;
  int32_t* out;
};

}  // namespace attn

namespace attn::cpu {

// Lists must be in order and in range.
void layout_build(const LayoutBuildParams& params);
void layout_transpose(const LayoutTransposeParams& params);
void tiles_transpose(const TilesTransposeParams& params);

}  // namespace attn::cpu
