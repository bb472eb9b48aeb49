// Row tiles and key spans of every schedule, pair by pair against the definitions.
#include "attn/schedule.h"

#include <gtest/gtest.h>

#include <string>

#include "schedule_case.h"

namespace attn {
namespace {

void fill_group(const AttendParams& p, const TestSequence& s, int64_t head, RowGroup& g) {
  g.batch = s.batch;
  g.head = head;
  g.head_kv = head / (p.heads / p.heads_kv);
  g.queries = static_cast<int32_t>(s.queries);
  g.keys = static_cast<int32_t>(s.keys);
}

std::vector<Span> spans_of(const AttendParams& p, const RowGroup& g, int32_t lo, int32_t hi) {
  std::vector<Span> spans;
  visit_keys(p, g, lo, hi, [&](const Span& s) {
    spans.push_back(s);
    return true;
  });
  return spans;
}

bool bit_kept(const LayoutView& l, const Span& s, int64_t block_row, int32_t key) {
  if (s.slot < 0) return true;
  const int64_t words = (l.block_k + 31) / 32, column = key - s.origin;
  return (l.bits[(s.slot * l.block_q + block_row) * words + column / 32] >> (column % 32)) & 1;
}

// What the kernels make of the spans: row i, standing at its position, sees these keys.
std::vector<char> seen_by(const AttendParams& p, const RowGroup& g, const std::vector<Span>& spans, int32_t i) {
  std::vector<char> seen(g.keys, 0);
  const RowWindow w = row_window(p.rule, row_position(p, g.queries, g.keys, i));
  for (const Span& s : spans) {
    for (int32_t j = s.begin; j < s.end; ++j) {
      const bool exempt = s.exempt || j < p.rule.sink;
      const int64_t in_block = p.schedule == ScheduleKind::layout ? i - g.block_row * p.layout.block_q : 0;
      if (visible(j, w.lo, w.hi, w.cap, exempt) && bit_kept(p.layout, s, in_block, j)) ++seen[j];
    }
  }
  return seen;
}

void check_spans(const std::vector<Span>& spans, int32_t lo, int32_t hi) {
  int32_t done = lo;
  for (const Span& s : spans) {
    ASSERT_LT(s.begin, s.end) << "empty span";
    ASSERT_GE(s.begin, done) << "spans overlap or descend";
    ASSERT_LE(s.end, hi) << "span past the range asked for";
    done = s.end;
  }
}

void check_schedule(const ScheduleCase& c, int32_t tile) {
  const AttendParams p = c.params();
  for (const TestSequence& s : c.sequences()) {
    const RowTiling tiling = row_tiling(p, s.queries, s.keys, tile);
    for (int64_t h = 0; h < p.heads; ++h) {
      int32_t next_row = 0;
      for (int64_t t = 0; t < row_tile_count(tiling, s.queries); ++t) {
        RowGroup g;
        fill_group(p, s, h, g);
        row_tile(tiling, s.queries, t, g);
        if (g.q_begin >= g.q_end) continue;
        ASSERT_EQ(g.q_begin, next_row) << "tiles don't follow each other";
        ASSERT_LE(g.q_end - g.q_begin, tile);
        ASSERT_LE(g.q_end, s.queries);
        next_row = g.q_end;
        set_reach(p, g);
        const std::vector<Span> whole = spans_of(p, g, 0, g.keys);
        check_spans(whole, 0, g.keys);
        if (testing::Test::HasFatalFailure()) return;
        for (int32_t i = g.q_begin; i < g.q_end; ++i) {
          const std::vector<char> seen = seen_by(p, g, whole, i);
          for (int32_t j = 0; j < g.keys; ++j) {
            ASSERT_EQ(static_cast<int>(seen[j]), static_cast<int>(c.sees(s, h, i, j)))
                << "head " << h << " row " << i << " key " << j << " of " << g.queries << "x" << g.keys << ", tile "
                << tile;
          }
        }
        // Ranges of keys: nothing is lost or repeated at their ends.
        for (int32_t step : {1, 50}) {
          std::vector<char> once(g.keys, 0), pieces(g.keys, 0);
          for (const Span& span : whole) std::fill(once.begin() + span.begin, once.begin() + span.end, 1);
          for (int32_t lo = 0; lo < g.keys; lo += step) {
            const int32_t hi = min_i32(lo + step, g.keys);
            const std::vector<Span> part = spans_of(p, g, lo, hi);
            check_spans(part, lo, hi);
            if (testing::Test::HasFatalFailure()) return;
            for (const Span& span : part) std::fill(pieces.begin() + span.begin, pieces.begin() + span.end, 1);
          }
          ASSERT_EQ(pieces, once) << "key ranges of " << step;
        }
      }
      ASSERT_EQ(next_row, s.queries) << "rows are missing";
    }
  }
}

class Schedule : public testing::TestWithParam<ScheduleKind> {};

TEST_P(Schedule, RowsSeeWhatTheDefinitionSays) {
  std::mt19937 random(static_cast<uint32_t>(GetParam()) + 1);
  for (int i = 0, done = 0; done < 60; ++i) {
    ScheduleOptions o = random_schedule(random);
    if (o.kind != GetParam()) continue;
    ++done;
    o.tq = std::min<int64_t>(o.tq, 129);
    if (o.kind == ScheduleKind::strided && o.bidirectional) o.tk = o.tq;
    if (!o.cu_q.empty()) o.tq = std::max<int64_t>(o.tq, o.cu_q.back());
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << o);
    ScheduleCase c(o, static_cast<uint32_t>(i));
    for (int32_t tile : {128, 64, 7}) check_schedule(c, tile);
    if (HasFatalFailure()) return;
  }
}

std::string kind_name(const testing::TestParamInfo<ScheduleKind>& kind) {
  const char* names[] = {"Range", "Layout", "Strided", "Gathered"};
  return names[static_cast<int>(kind.param)];
}
INSTANTIATE_TEST_SUITE_P(Kinds, Schedule,
                         testing::Values(ScheduleKind::range, ScheduleKind::layout, ScheduleKind::strided,
                                         ScheduleKind::gathered),
                         kind_name);

// Keys that no row of the tile sees cost time: plain windows never report any.
TEST(ScheduleRange, ReportsNoKeyInVain) {
  std::mt19937 random(9);
  for (int i = 0; i < 100; ++i) {
    const ScheduleOptions o = random_schedule(random, false);
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << o);
    const ScheduleCase c(o, 0);
    const AttendParams p = c.params();
    for (const TestSequence& s : c.sequences()) {
      const RowTiling tiling = row_tiling(p, s.queries, s.keys, 64);
      for (int64_t t = 0; t < row_tile_count(tiling, s.queries); ++t) {
        RowGroup g;
        fill_group(p, s, 0, g);
        row_tile(tiling, s.queries, t, g);
        if (g.q_begin >= g.q_end) continue;
        set_reach(p, g);
        for (const Span& span : spans_of(p, g, 0, g.keys)) {
          for (int32_t j = span.begin; j < span.end; ++j) {
            bool seen = false;
            for (int32_t r = g.q_begin; r < g.q_end; ++r) seen |= c.sees(s, 0, r, j);
            ASSERT_TRUE(seen) << "key " << j << " for rows " << g.q_begin << " to " << g.q_end;
          }
        }
      }
    }
  }
}

TEST(TokenRule, LargePositionsAreClamped) {
  const RowWindow all = row_window({false, -1, -1, 0}, INT64_C(1) << 40);
  EXPECT_EQ(all.hi, kUnbounded);
  EXPECT_EQ(all.cap, kUnbounded);
  EXPECT_EQ(all.lo, -kUnbounded);
  const RowWindow wide = row_window({true, INT64_C(1) << 40, INT64_C(1) << 40, 0}, 5);
  EXPECT_EQ(wide.lo, -kUnbounded);
  EXPECT_EQ(wide.hi, 5);
  EXPECT_EQ(wide.cap, 5);
}

TEST(LowerBound, FindsTheFirstEntryNotBelow) {
  const int32_t list[] = {1, 3, 3, 3, 8};
  for (int32_t n = 0; n <= 5; ++n) {
    for (int32_t value = 0; value < 10; ++value) {
      EXPECT_EQ(lower_bound_i32(list, n, value), std::lower_bound(list, list + n, value) - list);
    }
  }
}

}  // namespace
}  // namespace attn
