// Keys as TMA fetches them: a tile is two pieces of 64 neighbours from multiples of 64, wherever the schedule has them.
#pragma once

#include "cuda/attend_items.h"
#include "cuda/seam_sm90.h"

namespace attn::cuda {

constexpr int kPieceKeys = 64, kTilePieces = 2, kGroupKeys = kTilePieces * kPieceKeys;

struct PieceTile {
  int32_t start[kTilePieces];  // first key of a piece, -1: none, and none in any tile that follows
  int64_t word[kTilePieces];   // its word of row 0 in LayoutView::bits, or -1
};

// Keys from here on are nobody's.
ATTN_HD int32_t keys_end(const AttendParams& p, const RowGroup& g) {
  return p.schedule == ScheduleKind::layout ? min_i32(g.keys, clamp_position(p.layout.keys)) : g.keys;
}

// visit_keys, of the schedules that come in pieces (serves.h).
template <class F>
ATTN_HD void visit_pieces(const AttendParams& p, const RowGroup& g, int32_t k_lo, int32_t k_hi, F&& f) {
  if (p.schedule == ScheduleKind::layout) visit_layout(p, g, k_lo, k_hi, f);
  else if (p.schedule == ScheduleKind::strided) visit_strided(p, g, k_lo, k_hi, f);
  else visit_range(p, g, k_lo, k_hi, f);
}

// Calls f(tile) for the tiles of a group's schedule, in order; the last one has no first piece. What a piece has beyond
// its span no row sees by position.
template <class F> ATTN_HD void for_each_piece_tile(const AttendParams& p, const RowGroup& g, F&& f) {
  static_assert(kTilePieces == 2);
  PieceTile t{{-1, -1}, {-1, -1}};
  // No index that varies: the tile stays in registers.
  const auto put = [&](int32_t start, int64_t word) {
    if (t.start[0] < 0) {
      t.start[0] = start;
      t.word[0] = word;
      return;
    }
    t.start[1] = start;
    t.word[1] = word;
    f(t);
    t = {{-1, -1}, {-1, -1}};
  };
  visit_pieces(p, g, 0, g.keys, [&](const Span& s) {
    for (int32_t start = s.begin / kPieceKeys * kPieceKeys; start < s.end; start += kPieceKeys)
      put(start, word_of_key(p.layout, s, start));
    return true;
  });
  if (t.start[0] >= 0) f(t);
  t = {{-1, -1}, {-1, -1}};
  f(t);
}

}  // namespace attn::cuda
