// BlockLayout's lists built and transposed by the CUDA kernels, on the host, against loops over the whole grid.
#include "cuda/smxx/layout_lists.h"

#include <gtest/gtest.h>

#include "../cpp/schedule_case.h"

namespace attn {
namespace {

struct Lists {
  std::vector<int32_t> count, index, slot;
  Lists(int64_t lists, int64_t width)
      : count(static_cast<size_t>(lists), -7), index(static_cast<size_t>(lists * width), -7), slot(index) {}
  ListsOut out(bool slots) { return {count.data(), index.data(), slots ? slot.data() : nullptr}; }
};

TEST(SimtLayoutBuild, ListsTheKeptBlocks) {
  std::mt19937 random(1);
  for (int64_t columns : {0, 1, 31, 32, 33, 70}) {
    const int64_t batch = 2, heads = 2, rows = 3, pitch = columns + 2;
    std::vector<uint8_t> mask(static_cast<size_t>(batch * heads * rows * pitch), 1);
    for (uint8_t& x : mask) x = random() % 3 ? 0 : static_cast<uint8_t>(1 + random() % 255);
    Lists got(batch * heads * rows, columns);
    const LayoutBuildParams p{mask.data(), heads * rows * pitch, rows * pitch, pitch, batch, heads, rows,
                              columns,     got.out(false)};
    simt::launch<cuda::LayoutBuild>(p, columns % 2 ? simt::Order::mixed : simt::Order::forward);
    for (int64_t list = 0; list < batch * heads * rows; ++list) {
      std::vector<int32_t> want;
      for (int64_t j = 0; j < columns; ++j)
        if (mask[static_cast<size_t>(list * pitch + j)]) want.push_back(static_cast<int32_t>(j));
      ASSERT_EQ(got.count[static_cast<size_t>(list)], static_cast<int32_t>(want.size()));
      want.resize(static_cast<size_t>(columns), 0);
      const auto first = got.index.begin() + list * columns;
      ASSERT_EQ(std::vector<int32_t>(first, first + columns), want);
    }
  }
}

void check_list(const Lists& got, int64_t list, int64_t width, std::vector<int32_t> want, std::vector<int32_t> slots) {
  ASSERT_EQ(got.count[static_cast<size_t>(list)], static_cast<int32_t>(want.size()));
  want.resize(static_cast<size_t>(width), 0);
  slots.resize(static_cast<size_t>(width), -1);
  const auto cut = [&](const std::vector<int32_t>& x) {
    return std::vector<int32_t>(x.begin() + list * width, x.begin() + (list + 1) * width);
  };
  ASSERT_EQ(cut(got.index), want);
  if (!slots.empty() && got.slot[0] != -7) { ASSERT_EQ(cut(got.slot), slots); }
}

TEST(SimtLayoutTranspose, ListsTheQueryBlocksOfEachKeyBlock) {
  std::mt19937 random(2);
  for (uint32_t i = 0; i < 30; ++i) {
    ScheduleOptions o = random_schedule(random);
    o.kind = ScheduleKind::layout;
    o.cu_q.clear();
    o.cu_k.clear();
    o.block_q = o.block_k = 16;
    o.tq = 1 + static_cast<int64_t>(random() % 1100);
    o.bits = i % 2;
    o.full_list = i % 3;
    const ScheduleCase c(o, i);
    const LayoutView l = c.params().layout;
    LayoutTransposeParams p{};
    p.layout = l;
    p.batch = o.shared_batch ? 1 : o.batch;
    p.heads = o.shared_heads ? 1 : o.heads;
    p.rows = (o.tq + 15) / 16;
    p.columns = (o.tk + 15) / 16;
    const int64_t lists = p.batch * p.heads * p.columns;
    Lists got(lists, p.rows), full(lists, p.rows);
    p.out = got.out(o.bits);
    if (o.full_list) p.full = full.out(false);
    simt::launch<cuda::LayoutTranspose>(p, i % 2 ? simt::Order::mixed : simt::Order::forward);
    for (int64_t list = 0; list < lists; ++list) {
      std::vector<int32_t> want, slots, want_full;
      const int64_t b = list / p.columns / p.heads, h = list / p.columns % p.heads, column = list % p.columns;
      for (int64_t row = 0; row < p.rows; ++row) {
        const int64_t at = b * l.index_batch + h * l.index_head + row * l.index_row;
        for (int32_t j = 0; j < l.count[b * l.count_batch + h * l.count_head + row]; ++j) {
          if (l.index[at + j] != column) continue;
          want.push_back(static_cast<int32_t>(row));
          slots.push_back(l.slot ? l.slot[at + j] : -1);
        }
        for (int32_t j = 0; o.full_list && j < l.full_count[b * l.full_count_batch + h * l.full_count_head + row]; ++j)
          if (l.full_index[b * l.full_index_batch + h * l.full_index_head + row * l.full_index_row + j] == column)
            want_full.push_back(static_cast<int32_t>(row));
      }
      check_list(got, list, p.rows, want, slots);
      if (o.full_list) check_list(full, list, p.rows, want_full, {});
    }
  }
}

TEST(SimtTilesTranspose, TurnsEveryBit) {
  std::mt19937 random(3);
  for (auto [block_q, block_k] : {std::array<int64_t, 2>{16, 16}, {32, 48}, {80, 32}, {128, 64}}) {
    const int64_t slots = 3, from = (block_k + 31) / 32, to = (block_q + 31) / 32;
    const size_t size = static_cast<size_t>(slots * block_k * to);
    std::vector<int32_t> bits(static_cast<size_t>(slots * block_q * from)), out(size + 100, -1);
    for (int32_t& x : bits) x = static_cast<int32_t>(random());
    simt::launch<cuda::TilesTranspose>({bits.data(), slots, block_q, block_k, out.data()});
    for (size_t i = size; i < out.size(); ++i) ASSERT_EQ(out[i], -1) << "written past its end";
    for (int64_t s = 0; s < slots; ++s) {
      for (int64_t key = 0; key < block_k; ++key) {
        for (int64_t query = 0; query < 32 * to; ++query) {
          const bool want =
              query < block_q && bits[static_cast<size_t>((s * block_q + query) * from + key / 32)] >> key % 32 & 1;
          const bool got = out[static_cast<size_t>((s * block_k + key) * to + query / 32)] >> query % 32 & 1;
          ASSERT_EQ(got, want) << s << " " << key << " " << query;
        }
      }
    }
  }
}

}  // namespace
}  // namespace attn
