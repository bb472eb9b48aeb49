// Who meets whom in the backward pass: for each key range, the row tiles that look at it. A schedule only tells which
// keys a row tile looks at; here it is turned round once, so that an item opens no tile in vain. The lists hold one
// entry per pair that meets, as many as the schedule keeps blocks.
#pragma once

#include <cstring>

#include "attn/parallel.h"
#include "cpu/work.h"

ATTN_NAMESPACE_BEGIN

// Row tile `tile` looks at the key range, and `turn` ranges below it look at that tile too (dq_sums.h).
struct TileVisit { int32_t tile, turn; };

class BackwardPlan {
 public:
  // `items`: key ranges of all sequences, [range][kv head] within each. Rows are tiled by `tile`.
  BackwardPlan(const AttendParams& params, const ItemIndex& items, int32_t range, int32_t tile)
      : p(params), items_(items), range_(range), tile_(tile), share_(p.heads > 0 ? heads_sharing_schedule(p) : 1),
        lists_of_item_(p.heads > 0 ? p.heads / p.heads_kv / share_ : 1) {
    const int64_t lists = items.count * lists_of_item_;
    first_ = new int64_t[static_cast<uint64_t>(lists + 1)];
    std::memset(first_, 0, (lists + 1) * sizeof *first_);
    for_each_visit([this](int64_t list, TileVisit) { ++first_[list + 1]; });
    for (int64_t i = 0; i < lists; ++i) first_[i + 1] += first_[i];
    visits_ = new TileVisit[static_cast<uint64_t>(first_[lists])];
    // Filling moves each list's start to its end, which is the next one's start.
    for_each_visit([this](int64_t list, TileVisit visit) { visits_[first_[list]++] = visit; });
    for (int64_t i = lists; i > 0; --i) first_[i] = first_[i - 1];
    first_[0] = 0;
  }
  ~BackwardPlan() {
    delete[] first_;
    delete[] visits_;
  }
  BackwardPlan(const BackwardPlan&) = delete;
  BackwardPlan& operator=(const BackwardPlan&) = delete;

  // Calls fn(visit) for the tiles of query head `head` that look at an item's keys, in ascending order.
  template <class F> void for_each(int64_t item, int64_t head, F&& fn) const {
    const int64_t list = list_of(item, head);
    for (int64_t i = first_[list]; i < first_[list + 1]; ++i) fn(visits_[i]);
  }

 private:
  int64_t list_of(int64_t item, int64_t head) const {
    return item * lists_of_item_ + head % (p.heads / p.heads_kv) / share_;
  }

  // Calls fn(list, visit) for all that meet; concurrent calls never name the same list.
  template <class F> void for_each_visit(F&& fn) const {
    const int64_t schedules = p.heads / share_;
    parallel_items(sequence_count(p) * schedules, [&](int64_t i, int) {
      const int64_t which = i / schedules, head = i % schedules * share_;
      const Sequence seq = sequence(p, which);
      const RowTiling tiling = row_tiling(p, seq.queries, seq.keys, tile_);
      const int64_t tiles = row_tile_count(tiling, seq.queries), item = items_.start(which);
      for (int64_t t = 0; t < tiles; ++t) {
        RowGroup group;
        if (!open_row_group(p, seq, tiling, t, head, group)) continue;
        int64_t part = 0;  // ranges below have been met
        int32_t turn = 0;
        visit_keys(p, group, 0, seq.keys, [&](const Span& s) {
          if (part < s.begin / range_) part = s.begin / range_;
          for (; part <= (s.end - 1) / range_; ++part)
            fn(list_of(item + part * p.heads_kv + group.head_kv, head), TileVisit{static_cast<int32_t>(t), turn++});
          return true;
        });
      }
    });
  }

  const AttendParams& p;
  const ItemIndex& items_;
  const int32_t range_, tile_;
  const int64_t share_, lists_of_item_;  // query heads of a list; lists of an item
  int64_t* first_;                       // [lists + 1]
  TileVisit* visits_;
};

ATTN_NAMESPACE_END
