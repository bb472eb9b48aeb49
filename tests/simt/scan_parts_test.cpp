// What the scan kernels are made of: products of tiles, cuts of sequences into chunks, states added up over chunks.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cuda/element.h"
#include "cuda/flow_grad_work.h"
#include "cuda/sm80/scan_tile.h"
#include "cuda/sm80/tile_product.h"
#include "cuda/smxx/chunk_scan.h"
#include "cuda/smxx/item_scan.h"

namespace attn {
namespace {

using namespace cuda;

template <class Tile, TileRows kA, TileRows kB> struct ProductOfTiles {
  static constexpr int kThreads = kTileThreads;
  struct Params {
    const float *a, *b;  // two of [64][64] each, as they lie in a tile
    float* out;
  };
  struct Shared { Tile a, b; };
  static Grid grid(const Params&) { return {}; }
  ATTN_DEVICE static void run(const Params& p, Shared& s) {
    TileSums sums;
    clear_sums(sums);
    for (int part = 0; part < 2; ++part) {
      if (part) seam::sync_block();
      for (int i = seam::thread(); i < kTile * kTile; i += kThreads) {
        s.a.put(i / kTile, i % kTile, p.a[part * kTile * kTile + i]);
        s.b.put(i / kTile, i % kTile, p.b[part * kTile * kTile + i]);
      }
      seam::sync_block();
      add_product<kA, kB>(sums, s.a, s.b);
    }
    for_sums([&](int n, int e, int i, int j) { p.out[i * kTile + j] = sums[n][e]; });
  }
};

// error: of the sum of the terms' sizes.
template <class Tile, TileRows kA, TileRows kB> void check_product(double error) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  constexpr int n = kTile * kTile;
  std::vector<float> a(2 * n), b(2 * n), out(n, NAN);
  for (float& x : a) x = normal(random);
  for (float& x : b) x = normal(random);
  simt::launch<ProductOfTiles<Tile, kA, kB>>({a.data(), b.data(), out.data()}, simt::Order::mixed);
  for (int i = 0; i < kTile; ++i) {
    for (int j = 0; j < kTile; ++j) {
      double want = 0, size = 0;
      for (int k = 0; k < 2 * kTile; ++k) {
        const int part = k / kTile * n, l = k % kTile;
        const double x = a[part + (kA == TileRows::product ? i * kTile + l : l * kTile + i)];
        const double y = b[part + (kB == TileRows::product ? j * kTile + l : l * kTile + j)];
        want += x * y;
        size += std::abs(x * y);
      }
      ASSERT_NEAR(out[i * kTile + j], want, error * size) << i << " " << j;
    }
  }
}

template <class Tile> void check_products(double error) {
  constexpr TileRows kProduct = TileRows::product, kSummed = TileRows::summed;
  check_product<Tile, kProduct, kProduct>(error);
  check_product<Tile, kProduct, kSummed>(error);
  check_product<Tile, kSummed, kProduct>(error);
  check_product<Tile, kSummed, kSummed>(error);
}

TEST(SimtScanParts, ProductsOfTiles) {
  check_products<FloatTile<true>>(1e-6);
  check_products<FloatTile<false>>(5e-4);
  check_products<Bf16Tile>(4e-3);
}

// Every chunk of every sequence has a slot of its own, and finds itself there.
TEST(SimtScanParts, SlotsOfChunks) {
  std::mt19937 random(5);
  for (int call = 0; call < 300; ++call) {
    std::vector<int32_t> cu{0};
    const int sequences = 1 + static_cast<int>(random() % 6);
    for (int s = 0; s < sequences; ++s) cu.push_back(cu.back() + (random() % 3 ? random() % 40 : 0));
    const int64_t tokens = cu.back() + random() % 5, length = 1 + random() % 9;
    for (const int32_t* bounds : {cu.data(), static_cast<int32_t*>(nullptr)}) {
      const ScanChunks c{bounds, sequences, tokens, length};
      std::vector<int> taken(c.slots());
      for (int64_t s = 0; s < sequences; ++s) {
        for (int64_t i = 0; i < c.chunks(s); ++i) {
          const int64_t slot = c.first_slot(s) + i;
          ASSERT_LT(slot, c.slots());
          ASSERT_EQ(taken[slot]++, 0);
          const ScanChunks::Place found = c.find(slot);
          ASSERT_EQ(found.sequence, s);
          ASSERT_EQ(found.chunk, i);
        }
      }
      for (int64_t slot = 0; slot < c.slots(); ++slot) {
        const ScanChunks::Place found = c.find(slot);
        ASSERT_EQ(taken[slot], found.chunk >= 0 && found.chunk < c.chunks(found.sequence));
      }
    }
  }
}

TEST(SimtScanParts, NoSequenceHasNoSlots) {
  const std::vector<int32_t> cu{0};
  EXPECT_EQ((ScanChunks{cu.data(), 0, 50, 7}.slots()), 0);
  EXPECT_EQ((ScanChunks{nullptr, 0, 50, 7}.slots()), 0);
}

TEST(SimtScanParts, BoundsThatNobodyChecked) {
  std::mt19937 random(6);
  for (int call = 0; call < 300; ++call) {
    std::vector<int32_t> cu;
    for (int i = 0; i < 5; ++i) cu.push_back(static_cast<int32_t>(random()) >> (random() % 31));
    const ScanChunks c{cu.data(), 4, static_cast<int64_t>(random() % 50), 1 + static_cast<int64_t>(random() % 9)};
    for (int64_t s = 0; s < 4; ++s) {
      const ScanChunks::Range r = c.sequence(s);
      EXPECT_TRUE(0 <= r.begin && r.begin <= r.end && r.end <= c.tokens);
      EXPECT_TRUE(c.first_slot(s) >= 0 && c.first_slot(s) + c.chunks(s) <= c.slots());
    }
    for (int64_t slot = 0; slot < c.slots(); ++slot) {
      const ScanChunks::Place found = c.find(slot);
      EXPECT_TRUE(found.sequence >= 0 && found.sequence < 4);
    }
  }
}

TEST(SimtScanParts, StatesOfChunks) {
  const std::vector<int32_t> cu{0, 70, 70, 73, 200};
  constexpr int64_t heads = 2, size = 150, sequences = 4;
  const ScanChunks chunks{cu.data(), sequences, 210, 7};
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> added(chunks.slots() * heads * size), start(sequences * heads * size);
  for (float& x : added) x = normal(random);
  for (float& x : start) x = normal(random);
  for (int variant = 0; variant < 8; ++variant) {
    const bool exclusive = variant & 1, reverse = variant & 2, from_start = variant & 4;
    std::vector<float> slots = added, total(sequences * heads * 2 * size, NAN);
    simt::launch<ChunkScan>({chunks, heads, size, slots.data(), from_start ? start.data() : nullptr, total.data(),
                             2 * size, exclusive, reverse},
                            simt::Order::backward);
    std::vector<char> mine(chunks.slots());
    for (int64_t s = 0; s < sequences; ++s) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < size; ++i) {
          const int64_t g = s * heads + h, n = chunks.chunks(s);
          double sum = from_start ? start[g * size + i] : 0;
          for (int64_t c = 0; c < n; ++c) {
            const int64_t slot = chunks.first_slot(s) + (reverse ? n - 1 - c : c), at = (slot * heads + h) * size + i;
            mine[slot] = 1;
            ASSERT_NEAR(slots[at], exclusive ? sum : added[at], 1e-5);
            sum += added[at];
          }
          ASSERT_NEAR(total[g * 2 * size + i], sum, 1e-5);
          ASSERT_TRUE(std::isnan(total[g * 2 * size + size + i]));
        }
      }
    }
    for (int64_t slot = 0; slot < chunks.slots(); ++slot) {
      if (!mine[slot]) { ASSERT_EQ(slots[slot * heads * size], added[slot * heads * size]); }
    }
  }
}

// More chunks than a block has threads; lines don't commute.
TEST(SimtScanParts, ItemsInFrontOfEachChunk) {
  const std::vector<int32_t> cu{0, 3, 3, 700};
  std::mt19937 random(8);
  std::uniform_real_distribution<float> uniform(0.3f, 1.f);
  for (const int32_t* bounds : {cu.data(), static_cast<const int32_t*>(nullptr)}) {
    for (bool reverse : {false, true}) {
      const int64_t heads = 2;
      const ScanChunks c{bounds, bounds ? 3 : 2, 700, 1};
      std::vector<FlowLine> items(static_cast<size_t>(c.slots() * heads), {NAN, NAN}), before;
      for (int64_t s = 0; s < c.sequences; ++s)
        for (int64_t i = 0; i < c.chunks(s) * heads; ++i)
          items[c.first_slot(s) * heads + i] = {uniform(random), uniform(random)};
      before = items;
      std::vector<FlowLine> total(static_cast<size_t>(c.sequences * heads), {NAN, NAN});
      simt::launch<ItemScan<FlowLine>>({c, heads, before.data(), total.data(), reverse}, simt::Order::mixed);
      for (int64_t s = 0; s < c.sequences; ++s) {
        for (int64_t h = 0; h < heads; ++h) {
          double slope = 1, offset = 0;
          const auto same = [&](const FlowLine& got) {
            ASSERT_NEAR(got.slope, slope, 1e-5 * slope + 1e-30);
            ASSERT_NEAR(got.offset, offset, 1e-5 * offset);
          };
          const int64_t n = c.chunks(s);
          for (int64_t i = 0; i < n; ++i) {
            const size_t at = static_cast<size_t>((c.first_slot(s) + (reverse ? n - 1 - i : i)) * heads + h);
            SCOPED_TRACE(testing::Message() << "sequence " << s << " chunk " << i << (reverse ? " from the end" : ""));
            same(before[at]);
            slope *= items[at].slope;
            offset = items[at].slope * offset + items[at].offset;
          }
          same(total[static_cast<size_t>(s * heads + h)]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace attn
