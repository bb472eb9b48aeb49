// The CUDA decode kernel and the merge of its parts on the host, against the textbook in double (the CPU test's
// oracle).
#include "cuda/sm80/decode.h"

#include "attend_check.h"
#include "cuda/smxx/merge_states.h"

namespace attn {
namespace {

// blocks: for the parts of a row; 0: as many as on a GPU.
template <class E> void run(const AttendParams& p, simt::Order order = simt::Order::forward, int64_t blocks = 0) {
  ASSERT_TRUE(cuda::few_rows(p));
  std::vector<float> scratch(static_cast<size_t>(cuda::attend_scratch(p)), NAN);
  cuda::DecodeParams d = cuda::decode_params(p, scratch.data());
  if (blocks) d.blocks = std::min(blocks, d.splits);
  with_dim(p, [&](auto dim) { simt::launch<cuda::Decode<DeviceElement<E>, dim>>(d, order); });
  if (d.splits > 1) simt::launch<cuda::MergeSplits<DeviceElement<E>>>(cuda::merge_params(d), order);
}

template <class E> void check(const AttendOptions& o, uint32_t seed) {
  SCOPED_TRACE(testing::Message() << o << " seed " << seed);
  AttendCase<E> c(o, seed);
  run<E>(c.params());
  compare(c);
}

AttendOptions few_queries(std::mt19937& random) {
  AttendOptions o = small_call(random);
  ScheduleOptions& s = o.schedule;
  s.cu_q.clear();
  s.cu_k.clear();
  s.tq = 1 + static_cast<int64_t>(random() % (random() % 2 ? 4 : 16));
  if (s.kind == ScheduleKind::strided) s.tk = std::max(s.tk, s.tq);
  if (s.bidirectional) s.tk = s.tq;
  return o;
}

template <class E> class SimtDecode : public testing::Test {};
using Elements = testing::Types<BF16, F16, F32>;
TYPED_TEST_SUITE(SimtDecode, Elements);

TYPED_TEST(SimtDecode, RandomCalls) {
  std::mt19937 random(TypeParam::dtype == DType::bf16 ? 1 : 2);
  for (uint32_t i = 0; i < 40 && !this->HasFatalFailure(); ++i) check<TypeParam>(few_queries(random), i);
}

// Four warps of 16 keys, tiles of 64, parts of 256 keys and more; lengths up to the capacity.
TYPED_TEST(SimtDecode, SizesAroundTilesAndParts) {
  for (int64_t keys : {0, 1, 16, 17, 64, 65, 191, 255, 257, 513, 700}) {
    AttendOptions o;
    ScheduleOptions& s = o.schedule;
    s.batch = 2;
    s.heads = 4;
    s.tq = 1;
    s.tk = 700;
    s.key_lengths = {static_cast<int32_t>(keys), 3};
    s.causal = true;
    o.dim = o.dim_v = 30;
    o.sinks = keys % 2;
    check<TypeParam>(o, 3);
  }
}

// Heads of a group and queries share the sixteen rows: one, all of them, more than a block has.
TYPED_TEST(SimtDecode, RowsOfAGroup) {
  for (auto [heads, heads_kv, tq] : {std::array<int64_t, 3>{1, 1, 16}, {8, 1, 2}, {8, 2, 3}, {6, 2, 5}, {20, 1, 1}}) {
    AttendOptions o;
    o.schedule.heads = heads;
    o.schedule.heads_kv = heads_kv;
    o.schedule.tq = tq;
    o.schedule.tk = 300;
    o.schedule.causal = true;
    o.dim = o.dim_v = 22;
    check<TypeParam>(o, 4);
  }
}

TYPED_TEST(SimtDecode, Features) {
  for (int64_t dim : {1, 62, 65, 126, 254, 256}) {
    AttendOptions o = one_head(2, 270);
    o.dim = dim;
    check<TypeParam>(o, 5);
    std::swap(o.dim, o.dim_v);
    check<TypeParam>(o, 6);
  }
}

// Windows far from the sinks, and every modifier, on each schedule; several parts.
TYPED_TEST(SimtDecode, SchedulesAndModifiers) {
  for (AttendOptions o : every_modifier()) {
    ScheduleOptions& s = o.schedule;
    if (!s.cu_q.empty()) continue;  // packed rows are not decoding's
    s.batch = 2;
    s.tq = 3;
    s.tk = 640;
    if (s.left >= 0) s.left = 300;
    s.sink = 5;
    if (s.kind != ScheduleKind::strided) s.key_lengths = {640, 411};
    o.segments = s.kind == ScheduleKind::range;
    o.nan_keys = 2;
    check<TypeParam>(o, 7);
  }
}

TYPED_TEST(SimtDecode, PagedKeys) {
  for (int64_t page : {1, 16, 100}) {
    AttendOptions o;
    o.schedule.batch = 2;
    o.schedule.heads = 4;
    o.schedule.tq = 2;
    o.schedule.tk = 400;
    o.schedule.key_lengths = {390, 77};
    o.schedule.causal = true;
    o.page = page;
    o.dim = 30;
    o.dim_v = 22;
    check<TypeParam>(o, 8);
  }
}

// What generation asks of a cache: one to sixteen rows of grouped heads, sequences of different lengths, pages of 16 to
// 256 keys, windows with sinks, key weights and layouts; and the bits are those of a contiguous cache.
TYPED_TEST(SimtDecode, CachesInPages) {
  int which = 0;
  for (int64_t page : {16, 32, 64, 128, 256}) {
    for (int64_t tq : {1, 2, 5, 16}) {
      AttendOptions o;
      ScheduleOptions& s = o.schedule;
      s.batch = 2;
      s.heads = 8;
      s.heads_kv = 2;
      s.tq = tq;
      s.tk = 520;
      s.key_lengths = {static_cast<int32_t>(520 - 37 * (which % 3)), static_cast<int32_t>(page + tq / 2)};
      s.causal = true;
      if (which % 2) s.left = 150, s.sink = 4;
      if (which % 3 == 2) {
        s.kind = ScheduleKind::layout;
        s.full_list = true;
        s.bits = which % 2;
      }
      o.key_weights = which % 4 < 2;
      o.token_major = which % 5 < 2;
      o.dim = which % 3 == 0 ? 62 : which % 3 == 1 ? 126 : 40;
      o.dim_v = o.dim - 8 * (which % 2);
      ++which;
      SCOPED_TRACE(testing::Message() << o << " page " << page);
      AttendCase<TypeParam> contiguous(o, 8);
      run<TypeParam>(contiguous.params());
      o.page = page;
      AttendCase<TypeParam> paged(o, 8);
      run<TypeParam>(paged.params());
      compare(paged);
      ASSERT_TRUE(same_bits(contiguous, paged));
    }
  }
}

// Values on a GPU are used before anybody could have looked at them. A page that doesn't exist has no keys, lengths are
// those of the cache at most.
TYPED_TEST(SimtDecode, WrongPagesAndLengthsReadNothing) {
  AttendOptions o;
  o.schedule.batch = 2;
  o.schedule.tq = 2;
  o.schedule.tk = 320;
  o.schedule.key_lengths = {320, 320};
  o.schedule.causal = true;
  o.page = 32;
  o.key_weights = true;
  AttendCase<TypeParam> want(o, 9), got(o, 9);
  for (int64_t h = 0; h < o.schedule.heads_kv; ++h) {
    for (int64_t key = 0; key < 320; ++key) {
      const bool gone = key / 32 == 2 || key / 32 == 9;
      if (gone) want.key_weight[static_cast<size_t>(h * 320 + key)] = -INFINITY;
    }
  }
  run<TypeParam>(want.params());
  AttendParams p = got.params();
  std::vector<int32_t> table(p.paging.table, p.paging.table + 2 * p.paging.pages), lengths{INT32_MAX, 320};
  table[2] = -1;
  table[9] = static_cast<int32_t>(p.paging.stored);
  p.paging.table = table.data();
  p.key_lengths = lengths.data();
  run<TypeParam>(p);
  EXPECT_TRUE(same_bits(want, got));
  lengths = {-5, 320};
  run<TypeParam>(p);
  EXPECT_EQ(got.lse[0], -INFINITY);
  EXPECT_EQ(got.out.get(0, 0, 0, 0), 0);
}

// A list of a layout or a selection is as long as the tensor, whatever its count says.
TYPED_TEST(SimtDecode, WrongCountsStayInTheirList) {
  for (ScheduleKind kind : {ScheduleKind::layout, ScheduleKind::gathered}) {
    AttendOptions o;
    o.schedule.kind = kind;
    o.schedule.heads = o.schedule.heads_kv = o.schedule.selection_heads = 1;
    o.schedule.tq = 2;
    o.schedule.tk = 320;
    o.schedule.causal = true;
    o.schedule.left = 20;
    o.schedule.density = 1;
    AttendCase<TypeParam> want(o, 10), got(o, 10);
    AttendParams p = want.params();
    const int64_t n = kind == ScheduleKind::layout ? p.layout.width : p.selection.width;
    std::vector<int32_t> list, count{static_cast<int32_t>(n)};
    for (int64_t i = 0; i < n; ++i) list.push_back(static_cast<int32_t>(kind == ScheduleKind::layout ? i : 32 * i));
    for (AttendCase<TypeParam>* c : {&want, &got}) {
      p = c->params();
      p.layout.index = p.selection.index = list.data();  // nothing may be read past its end
      p.layout.count = p.selection.count = count.data();
      run<TypeParam>(p);
      count[0] = INT32_MAX;
    }
    EXPECT_TRUE(same_bits(want, got));
  }
}

TYPED_TEST(SimtDecode, EmptyInputs) {
  for (int which = 0; which < 3; ++which) {
    AttendOptions o;
    o.schedule.tq = which == 1 ? 0 : 4;
    if (which == 0) o.schedule.batch = 0;
    if (which == 2) o.schedule.tk = 0;
    check<TypeParam>(o, 9);
    o.sinks = true;
    check<TypeParam>(o, 9);
  }
}

// What a mask hides doesn't matter; what a row sees isn't hidden.
TYPED_TEST(SimtDecode, NanAndInfinityReachOnlyTheRowsThatSeeThem) {
  AttendOptions o;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tq = 4;
  o.schedule.tk = 300;
  o.schedule.causal = true;
  AttendCase<TypeParam> c(o, 10);
  const int64_t key = 298;  // rows 2 and 3 see it
  for (int64_t d = 0; d < 3; ++d)
    c.v.at(0, 0, key, d) = TypeParam::put(std::initializer_list<double>{NAN, INFINITY, -INFINITY}.begin()[d]);
  run<TypeParam>(c.params());
  for (int64_t t = 0; t < 4; ++t) {
    ASSERT_EQ(std::isnan(c.out.get(0, 0, t, 0)), t >= 2) << t;
    ASSERT_EQ(c.out.get(0, 0, t, 1) == INFINITY, t >= 2) << t;
    ASSERT_EQ(c.out.get(0, 0, t, 2) == -INFINITY, t >= 2) << t;
    for (int64_t d = 3; d < o.dim_v; ++d) ASSERT_TRUE(std::isfinite(c.out.get(0, 0, t, d))) << t;
  }
}

TYPED_TEST(SimtDecode, OrderOfThreadsBlocksAndBatchDoNotMatter) {
  std::mt19937 random(3);
  for (uint32_t i = 0; i < 4; ++i) {
    AttendOptions o = few_queries(random);
    if (i == 0) o = {}, o.schedule.tq = 2, o.schedule.tk = 1200, o.schedule.sink = 3, o.schedule.left = 900;
    SCOPED_TRACE(testing::Message() << o);
    AttendCase<TypeParam> c(o, i), other(o, i);
    run<TypeParam>(c.params());
    run<TypeParam>(other.params(), i % 2 ? simt::Order::mixed : simt::Order::backward, 1 + i % 2);
    ASSERT_TRUE(same_bits(c, other));
  }
  AttendOptions o;
  o.schedule.batch = 3;
  o.schedule.tq = 2;
  o.schedule.tk = 290;
  o.schedule.key_lengths = {20, 0, 290};
  o.schedule.causal = true;
  AttendCase<TypeParam> c(o, 11);
  run<TypeParam>(c.params());
  const auto together = c.out.data;
  AttendParams p = c.params();
  p.batch = 1;
  p.key_lengths += 2;
  for (View4* x : {&p.q, &p.k, &p.v})
    x->data = static_cast<char*>(x->data) + 2 * x->batch * static_cast<int64_t>(sizeof(together[0]));
  run<TypeParam>(p);
  const size_t entry = static_cast<size_t>(p.out.batch) * sizeof(together[0]);
  ASSERT_EQ(0, std::memcmp(c.out.data.data(), together.data() + 2 * p.out.batch, entry));
}

// Room in the cache changes the number of parts, but not where keys are cut.
TYPED_TEST(SimtDecode, RoomInTheCacheDoesNotMatter) {
  AttendOptions o;
  o.schedule.heads = o.schedule.heads_kv = 1;
  o.schedule.tq = 2;
  o.schedule.tk = 700;
  o.schedule.key_lengths = {290};
  o.schedule.causal = true;
  AttendCase<TypeParam> c(o, 12), other(o, 12);
  run<TypeParam>(c.params());
  AttendParams p = other.params();
  p.tk = 290;
  ASSERT_NE(cuda::key_splits(p), cuda::key_splits(c.params()));
  run<TypeParam>(p);
  EXPECT_TRUE(same_bits(c, other));
}

// The parts of a row's keys are disjoint, ascending, and miss nothing that the schedule visits.
TEST(SimtDecodeSplit, PartsCoverEveryVisitedKeyOnce) {
  std::mt19937 random(4);
  int several = 0;
  for (int i = 0; i < 300; ++i) {
    ScheduleOptions o = random_schedule(random);
    o.cu_q.clear();
    o.cu_k.clear();
    o.key_lengths.clear();
    o.tq = 1 + static_cast<int64_t>(random() % 16);
    o.tk = o.bidirectional ? o.tq : static_cast<int64_t>(random() % 5000) + o.tq;
    if (o.left >= 0) o.left = static_cast<int64_t>(random() % 3000);
    if (o.sink > 0 && i % 3 == 0) o.sink = 9000;
    SCOPED_TRACE(testing::Message() << o);
    const ScheduleCase c(o, 5);
    const AttendParams p = c.params();
    const int64_t splits = cuda::key_splits(p);
    several += splits > 1;
    for (int64_t place = 0; place < cuda::DecodeGrid::places(p); ++place) {
      cuda::RowItem item;
      if (!cuda::DecodeGrid::open(p, place, 0, item)) continue;
      std::vector<int> want(static_cast<size_t>(o.tk), 0), got(want);
      auto mark = [&](std::vector<int>& keys, cuda::KeyRange range) {
        visit_keys(p, item.group, range.begin, range.end, [&](const Span& s) {
          for (int32_t key = s.begin; key < s.end; ++key) ++keys[static_cast<size_t>(key)];
          return true;
        });
      };
      mark(want, {0, item.group.keys});
      if (splits > 1) {  // as many cuts as the longest cache has, in the same places as far as the shorter goes
        AttendParams large = p;
        large.tk = int64_t{1} << 30;
        for (int64_t split = 0; split < splits; ++split) {
          const cuda::KeyRange x = cuda::key_split(p, item.group, splits, split),
                               y = cuda::key_split(p, item.group, cuda::key_splits(large), split);
          ASSERT_EQ(x.begin, y.begin);
          ASSERT_EQ(x.end, y.end);
        }
      }
      int32_t before = 0;
      for (int64_t split = 0; split < splits; ++split) {
        const cuda::KeyRange range = cuda::key_split(p, item.group, splits, split);
        mark(got, range);
        if (range.begin >= range.end) continue;
        ASSERT_GE(range.begin, before);
        before = range.end;
      }
      ASSERT_EQ(got, want);
    }
  }
  EXPECT_GT(several, 100);
}

}  // namespace
}  // namespace attn
