// A tile of keys in shared memory, gathered from the spans of a schedule by one warp, with what masking needs to know
// about each; and what the rows of a warp or block see of it by position.
#pragma once

#include "attn/softmax.h"
#include "cuda/attend_items.h"
#include "cuda/seam.h"

namespace attn::cuda {

constexpr int32_t kNoKey = INT32_MIN;  // a position below every window

template <int kSize> struct KeyTile {
  static constexpr int kKeys = kSize;
  int64_t k_row[kSize], v_row[kSize];  // where a key's rows begin in its kv head, in elements; -1: no key
  int64_t word[kSize];                 // key's word of row 0 in LayoutView::bits, or -1
  int32_t bit[kSize];                  // and its bit there
  int32_t position[kSize];
  int32_t exempt[kSize];  // 0 or 1
  int32_t segment[kSize];
  float weight[kSize];     // times log2 e
  int32_t n, first, last;  // keys, and the positions of the first and last
  int32_t segment_low, segment_high;
  bool any_exempt, all_exempt, any_bits, removed;  // removed: a key of weight -inf, seen by nobody
};

// Rows as far as position tells; any superset of them is right too.
struct RowsReach {
  RowWindow first, last;  // of the first and last row: windows ascend
  int32_t segment_low, segment_high;

  ATTN_DEVICE static RowsReach of(const AttendParams& p, const RowItem& item, int32_t begin, int32_t end) {
    const int32_t n = item.tile_rows;
    const bool one_head = begin / n == (end - 1) / n;
    const RowGroup& g = item.group;
    RowsReach r;
    r.first = row_window(p.rule, row_position(p, g.queries, g.keys, g.q_begin + (one_head ? begin % n : 0)));
    r.last = row_window(p.rule, row_position(p, g.queries, g.keys, g.q_begin + (one_head ? (end - 1) % n : n - 1)));
    r.segment_low = -kUnbounded - 1;
    r.segment_high = kUnbounded;
    return r;
  }

  template <class Tile> ATTN_DEVICE bool sees_all(const Tile& t, bool segments) const {
    if (t.n < Tile::kKeys || t.any_bits || t.removed) return false;
    if (segments && (t.segment_low != segment_high || t.segment_high != segment_low)) return false;
    return (t.first >= last.lo && t.last <= first.hi) || (t.all_exempt && t.last <= first.cap);
  }
  template <class Tile> ATTN_DEVICE bool sees_none(const Tile& t, bool segments) const {
    if (segments && (t.segment_low > segment_high || t.segment_high < segment_low)) return true;
    if (t.any_exempt) return t.first > max_i32(last.hi, last.cap);
    return t.first > last.hi || t.last < first.lo;
  }
};

ATTN_DEVICE void warp_range(int32_t& low, int32_t& high) {
  for (int step = 16; step > 0; step /= 2) {
    low = min_i32(low, seam::shuffle_xor(low, step));
    high = max_i32(high, seam::shuffle_xor(high, step));
  }
}

// Fills `t` with the next keys of the item's schedule in [from, end); returns where to go on. kPlaced: each at its
// distance from `from`, with gaps between them. A warp function.
template <bool kPlaced = false, int kKeys>
ATTN_DEVICE int32_t fill_key_tile(const AttendParams& p, const RowItem& item, int32_t from, int32_t end,
                                  KeyTile<kKeys>& t) {
  const RowGroup& g = item.group;
  const int32_t sink = clamp_position(p.rule.sink), lane = seam::lane();
  const int32_t* pages = p.paging.table ? p.paging.table + g.batch * p.paging.pages : nullptr;
  int32_t n = 0, filled = 0, first = 0, next = from, segment_low = kUnbounded, segment_high = -kUnbounded - 1;
  bool any_exempt = false, all_exempt = true, any_bits = false, removed = false;
  auto no_key = [&](int32_t i) {
    t.k_row[i] = t.v_row[i] = t.word[i] = -1;
    t.position[i] = kNoKey;
    t.exempt[i] = t.bit[i] = t.segment[i] = 0;
    t.weight[i] = 0;
  };
  auto key = [&](int32_t i, int32_t position, const Span& s) {
    const int64_t token = item.seq.k_token + position;
    if (p.key_log_weight.data) {
      const View3& w = p.key_log_weight;
      const float weight =
          static_cast<const float*>(w.data)[item.seq.batch * w.batch + g.head_kv * w.head + token * w.token];
      if (weight == -INFINITY) {
        removed = true;
        return no_key(i);
      }
      t.weight[i] = weight * static_cast<float>(kLog2e);
    }
    if (pages) {
      const int64_t page = pages[position / p.paging.page], row = position % p.paging.page;
      if (page < 0 || page >= p.paging.stored) {  // never read: the key counts as removed
        removed = true;
        return no_key(i);
      }
      t.k_row[i] = page * p.k.batch + row * p.k.token;
      t.v_row[i] = page * p.v.batch + row * p.v.token;
    } else {
      t.k_row[i] = item.seq.batch * p.k.batch + token * p.k.token;
      t.v_row[i] = item.seq.batch * p.v.batch + token * p.v.token;
    }
    t.position[i] = position;
    t.exempt[i] = s.exempt | (position < sink);
    t.word[i] = word_of_key(p.layout, s, position);
    t.bit[i] = (position - s.origin) % 32;
    if (p.segment_k.data) {
      const int32_t id = p.segment_k.data[item.seq.batch * p.segment_k.batch + token * p.segment_k.token];
      t.segment[i] = id;
      segment_low = min_i32(segment_low, id);
      segment_high = max_i32(segment_high, id);
    }
  };
  visit_keys(p, g, from, end, [&](const Span& s) {
    const int32_t to = kPlaced ? s.begin - from : n, count = min_i32(s.end - s.begin, kKeys - to);
    for (int32_t i = filled + lane; i < to; i += 32) no_key(i);
    for (int32_t i = lane; i < count; i += 32) key(to + i, s.begin + i, s);
    if (n == 0) first = s.begin;
    n += count;
    filled = to + count;
    next = s.begin + count;
    any_exempt |= s.exempt | (s.begin < sink);
    all_exempt &= s.exempt | (next <= sink);
    any_bits |= s.slot >= 0;
    return filled < kKeys;
  });
  for (int32_t i = filled + lane; i < kKeys; i += 32) no_key(i);
  removed = seam::any(removed);
  if (p.segment_k.data) warp_range(segment_low, segment_high);
  if (lane == 0) {
    t.n = n;
    t.first = first;
    t.last = next - 1;
    t.segment_low = segment_low;
    t.segment_high = segment_high;
    t.any_exempt = any_exempt;
    t.all_exempt = all_exempt;
    t.any_bits = any_bits;
    t.removed = removed;
  }
  return filled < kKeys ? end : next;
}

}  // namespace attn::cuda
