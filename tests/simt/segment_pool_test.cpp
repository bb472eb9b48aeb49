// The CUDA segment pooling kernels on the host, against the definition in double.
#include "../cpp/segment_case.h"
#include "cuda/smxx/segment_ids.h"
#include "cuda/smxx/segment_pool_grad.h"
#include "simt/pool_check.h"

namespace attn {
namespace {

template <class E> void run(SegmentCase<E>& c, simt::Order order = simt::Order::forward) {
  using T = PoolElement<E>;
  const SegmentPoolParams p = c.forward();
  const SegmentPoolBackwardParams b = c.backward();
  PoolScratch scratch(cuda::segment_pool_forward_scratch(p)), more(cuda::segment_pool_backward_scratch(b));
  const cuda::SegmentForwardParams f = cuda::segment_forward_params(p, scratch.at(0));
  ASSERT_TRUE(f.wide || !c.o.whole || p.batch == 0);
  simt::launch<cuda::SegmentReduce<T>>(f, order);
  simt::launch<cuda::SegmentJoin<T>>(f, order);
  const cuda::SegmentBackwardParams g = cuda::segment_backward_params(b, more.at(0));
  simt::launch<cuda::SegmentPartSums<T>>(g, order);
  simt::launch<cuda::SegmentMaxShares<T>>(g, order);
  simt::launch<cuda::SegmentKept>(g, order);
  simt::launch<cuda::SegmentGradient<T>>(g, order);
}

template <class E> class SimtSegmentPool : public testing::Test {};
using Elements = testing::Types<F32, BF16, F16>;
TYPED_TEST_SUITE(SimtSegmentPool, Elements);

TYPED_TEST(SimtSegmentPool, MatchesTheDefinition) {
  int number = 0;
  for (const SegmentOptions& o : segment_calls()) {
    SCOPED_TRACE(number++);
    SegmentCase<TypeParam> c(o);
    run(c);
    c.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

TYPED_TEST(SimtSegmentPool, ManyParts) {
  SegmentOptions o;
  o.lengths = {1100, 3, 64 * 9};
  o.tokens = 1100 + 3 + 64 * 9;
  o.batch = 1;
  o.channels = 8;
  o.gap = 8;
  for (const auto reduce : {PoolReduce::max, PoolReduce::mean, PoolReduce::first, PoolReduce::last}) {
    for (const auto tie : {TieRule::first, TieRule::even}) {
      o.reduce = reduce;
      o.tie = tie;
      o.values = Values::ties;
      o.masked = reduce != PoolReduce::mean;
      SegmentCase<TypeParam> c(o);
      run(c);
      c.check();
    }
  }
}

TYPED_TEST(SimtSegmentPool, NeitherTheBatchNorTheOrderOfThreadsMatters) {
  SegmentOptions o;
  o.lengths = {150, 0, 30, 20};
  o.tokens = 200;
  o.reduce = PoolReduce::mean;
  SegmentCase<TypeParam> a(o), b = a;
  run(a);
  run(b, simt::Order::mixed);
  EXPECT_TRUE(same_bits(a.out, b.out));
  EXPECT_TRUE(same_bits(a.dx, b.dx));
  // The second batch entry alone.
  o.batch = 1;
  SegmentCase<TypeParam> alone(o);
  const int64_t row = a.x.tokens * a.x.pitch, dout = a.dout.tokens * a.dout.pitch;
  std::copy(a.x.data.begin() + row, a.x.data.end(), alone.x.data.begin());
  std::copy(a.dout.data.begin() + dout, a.dout.data.end(), alone.dout.data.begin());
  std::copy(a.offsets.begin() + 5, a.offsets.end(), alone.offsets.begin());
  run(alone);
  EXPECT_TRUE(std::equal(alone.out.data.begin(), alone.out.data.end(), a.out.data.end() - alone.out.data.size()));
  EXPECT_TRUE(std::equal(alone.dx.data.begin(), alone.dx.data.end(), a.dx.data.end() - alone.dx.data.size()));
}

// On a GPU nobody has looked at the offsets: anything may come out, but nothing outside the tensors is touched.
TEST(SimtSegmentPool, OffsetsMayHoldAnything) {
  SegmentOptions o;
  o.lengths = {100, 0, 1, 99};
  o.tokens = 200;
  for (const auto& offsets : {std::vector<int32_t>{-7, 150, INT32_MIN, 20, INT32_MAX}, {200, 100, 0, 300, -1}}) {
    SegmentCase<F32> c(o);
    for (size_t i = 0; i < c.offsets.size(); ++i) c.offsets[i] = offsets[i % offsets.size()];
    run(c);
  }
}

std::vector<int32_t> offsets_of_ids(const std::vector<int32_t>& ids, const Sequences& s, MaskView mask,
                                    int64_t segments, std::vector<int32_t>& ascending) {
  ascending.assign(ids.size(), -1);
  simt::launch<cuda::AscendingIds>({s, {ids.data(), s.tokens, 1}, mask, ascending.data()});
  std::vector<int32_t> offsets(s.batch * (segments + 1), -1);
  simt::launch<cuda::SegmentOffsets>({s.batch, s.tokens, segments, ascending.data(), offsets.data()});
  return offsets;
}

TEST(SimtSegmentIds, OffsetsAreWhereIdsBegin) {
  std::mt19937 random(3);
  for (const int64_t tokens : {0, 1, 31, 33, 600, 2048, 2049, 5000}) {
    for (const bool masked : {false, true}) {
      SCOPED_TRACE(tokens);
      const Sequences s{2, tokens, nullptr, 2};
      const KeptTokens kept(2, tokens, masked, random);
      std::vector<int32_t> ids(2 * tokens), wanted(2 * tokens), ascending;
      std::vector<int32_t> offsets;
      constexpr int32_t kSegments = 700;
      for (int64_t b = 0; b < 2; ++b) {
        int32_t id = 0, last = 0;
        int64_t next = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          if (random() % 4 == 0 && id < kSegments - 4) id += static_cast<int32_t>(random() % 4);
          ids[b * tokens + t] = id;
          if (kept(b, t)) last = id;
          else ids[b * tokens + t] = static_cast<int32_t>(random());
          wanted[b * tokens + t] = last;
          while (next <= last) offsets.push_back(static_cast<int32_t>(t)), ++next;
        }
        while (next++ <= kSegments) offsets.push_back(static_cast<int32_t>(tokens));
      }
      EXPECT_EQ(offsets_of_ids(ids, s, kept.view(), kSegments, ascending), offsets);
      EXPECT_EQ(ascending, wanted);
    }
  }
}

TEST(SimtSegmentIds, EachPackedSequenceForItself) {
  const std::vector<int32_t> ids = {4, 5, 5, 0, 1, 9, 2, 2, 7, 7}, cu = {0, 3, 3, 6, 8};
  std::vector<int32_t> ascending(10, -1);
  simt::launch<cuda::AscendingIds>({{1, 10, cu.data(), 4}, {ids.data(), 10, 1}, {nullptr, 0, 0}, ascending.data()});
  EXPECT_EQ(ascending, (std::vector<int32_t>{4, 5, 5, 0, 1, 9, 2, 2, -1, -1}));
}

TEST(SimtSegmentIds, MayHoldAnything) {
  const std::vector<int32_t> ids = {3, -1, 2, INT32_MAX, INT32_MIN, 5};
  std::vector<int32_t> ascending;
  EXPECT_EQ(offsets_of_ids(ids, {1, 6, nullptr, 1}, {nullptr, 0, 0}, 4, ascending),
            (std::vector<int32_t>{0, 0, 0, 0, 3}));
  EXPECT_EQ(ascending, (std::vector<int32_t>{3, 3, 3, INT32_MAX, INT32_MAX, INT32_MAX}));
}

}  // namespace
}  // namespace attn
