// A layout's lists on the CPU. Bound by memory: nothing here depends on an instruction set.
#include <algorithm>

#include "attn/layout.h"
#include "attn/parallel.h"

namespace attn::cpu {
namespace {

void finish(const ListsOut& out, int64_t list, int64_t width) {
  const int64_t first = list * width + out.count[list], end = (list + 1) * width;
  std::fill(out.index + first, out.index + end, 0);
  if (out.slot) std::fill(out.slot + first, out.slot + end, -1);
}

}  // namespace

void layout_build(const LayoutBuildParams& p) {
  parallel_items(p.batch * p.heads * p.rows, [&](int64_t list, int) {
    const int64_t row = list % p.rows, head = list / p.rows % p.heads, batch = list / p.rows / p.heads;
    const uint8_t* mask = p.mask + batch * p.mask_batch + head * p.mask_head + row * p.mask_row;
    int32_t* index = p.out.index + list * p.columns;
    int32_t count = 0;
    for (int64_t j = 0; j < p.columns; ++j) {
      index[count] = static_cast<int32_t>(j);  // overwritten where it isn't kept
      count += mask[j] != 0;
    }
    p.out.count[list] = count;
    finish(p.out, list, p.columns);
  });
}

void layout_transpose(const LayoutTransposeParams& p) {
  const LayoutView& l = p.layout;
  parallel_items(p.batch * p.heads, [&](int64_t matrix, int) {
    const int64_t batch = matrix / p.heads, head = matrix % p.heads, first = matrix * p.columns;
    const auto turn = [&](const ListsOut& out, const int32_t* count, int64_t count_batch, int64_t count_head,
                          const int32_t* index, int64_t index_batch, int64_t index_head, int64_t index_row) {
      std::fill(out.count + first, out.count + first + p.columns, 0);
      for (int64_t row = 0; row < p.rows; ++row) {
        const int64_t begin = batch * index_batch + head * index_head + row * index_row;
        const int32_t n = count[batch * count_batch + head * count_head + row];
        for (int32_t j = 0; j < n; ++j) {
          const int64_t list = first + index[begin + j];
          const int64_t at = list * p.rows + out.count[list]++;
          out.index[at] = static_cast<int32_t>(row);
          if (out.slot) out.slot[at] = l.slot[begin + j];
        }
      }
      for (int64_t column = 0; column < p.columns; ++column) finish(out, first + column, p.rows);
    };
    turn(p.out, l.count, l.count_batch, l.count_head, l.index, l.index_batch, l.index_head, l.index_row);
    if (l.full_count) {
      turn(p.full, l.full_count, l.full_count_batch, l.full_count_head, l.full_index, l.full_index_batch,
           l.full_index_head, l.full_index_row);
    }
  });
}

void tiles_transpose(const TilesTransposeParams& p) {
  const int64_t from = (p.block_k + 31) / 32, to = (p.block_q + 31) / 32;
  parallel_items(p.slots, [&](int64_t slot, int) {
    const int32_t* bits = p.bits + slot * p.block_q * from;
    int32_t* out = p.out + slot * p.block_k * to;
    for (int64_t key = 0; key < p.block_k; ++key) {
      for (int64_t word = 0; word < to; ++word) {
        uint32_t turned = 0;
        const int64_t end = std::min<int64_t>(32, p.block_q - 32 * word);
        for (int64_t row = 0; row < end; ++row) {
          const auto mine = static_cast<uint32_t>(bits[(32 * word + row) * from + key / 32]);
          turned |= (mine >> key % 32 & 1) << row;
        }
        out[key * to + word] = static_cast<int32_t>(turned);
      }
    }
  });
}

}  // namespace attn::cpu
