// What PoNet's blocks join that their tiles left: the parts of a segment longer than a tile, and sums of a sequence. A
// block has 32 channels.
#pragma once

#include "cuda/join_rows.h"
#include "cuda/ponet_tile.h"

namespace attn::cuda {

// The segment longer than a tile that starts in a block's tile, and what of it a thread joins.
struct PonetSplit {
  int64_t tile, channels, channel;
  int64_t home;     // slot of its first part
  bool there;       // has the lane a channel?
  JoinRange range;  // of parts, the warp's; none for a lane without a channel

  // False, for the whole block, if there is none. There is one at most: it reaches to the end of the tile, and further.
  ATTN_DEVICE bool open(const PonetParams& p) {
    const JoinItem item = JoinItem::mine<1>();
    TokenTile of;
    if (!PonetTiles::open(p.sequences, item.group, of) || of.outside) return false;
    const PonetRuns x(p, of, item.channel);
    if (x.begin >= x.end) return false;
    const int64_t from = x.cut.rule.begin(x.end - 1), to = x.cut.rule.end(x.end - 1);
    if (from < x.begin || to <= x.end) return false;
    const SegmentRun first{from, x.end, from, to};
    tile = of.index;
    channels = p.channels;
    channel = item.channel;
    home = x.slot(first);
    there = channel < channels;
    range = JoinRange::mine(there ? x.cut.last(first) - x.cut.home(first) + 1 : 0);
    return true;
  }
  // The slot of part `i`: all but the first are at the start of the tiles after this one.
  ATTN_DEVICE int64_t part(int64_t i) const { return i == 0 ? home : 2 * (tile + i) * channels + channel; }
};

// The tiles of a block's sequence, and what of them a thread joins.
struct SequenceTiles {
  int64_t sequence, channel;
  bool there;       // has the lane a channel?
  JoinRange range;  // of tiles, the warp's; none for a lane without a channel

  ATTN_DEVICE explicit SequenceTiles(const PonetParams& p) {
    const JoinItem item = JoinItem::mine<1>();
    sequence = item.group;
    channel = item.channel;
    there = channel < p.channels;
    const int64_t first = PonetTiles::first(p.sequences, sequence);
    range = JoinRange::mine(there ? PonetTiles::tiles(span_inside(p.sequences, sequence)) : 0);
    range.begin += first;
    range.end += first;
  }
};

// Sums over them: of `sum` at the lane's channel and, if asked, of `kept`.
template <bool kKept>
ATTN_DEVICE void sum_tiles(JoinShared<2>& shared, const SequenceTiles& tiles, int64_t channels, const float* sum,
                           const float* kept, float (&all)[2]) {
  float mine[2] = {0, 0};
  for (int64_t i = tiles.range.begin; i < tiles.range.end; ++i) {
    mine[0] += sum[i * channels + tiles.channel];
    if (kKept) mine[1] += kept[i];
  }
  set_channels(all, 0);
  for_warps(shared, mine, [&](const float (&x)[2]) {
    all[0] += x[0];
    all[1] += x[1];
  });
}

}  // namespace attn::cuda
