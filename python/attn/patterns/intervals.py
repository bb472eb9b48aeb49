"""From "row i sees these ranges of keys" to a layout, without a token mask.

Every pattern whose rows see a few contiguous key ranges goes through here: blocks are classified by counting,
per query block, the rows that touch a key block and the rows that cover it (difference arrays, one cumulative
sum), and bit tiles are computed from the range ends for the cut blocks only. Costs O(tokens * ranges + M * N)
time, and O(tokens * ranges + kept blocks) memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BlockLayout, bits, entries
from ..layout.entries import Grid

CHUNK_CELLS = 1 << 22  # block grid cells classified in one step
CHUNK_WORDS = 1 << 22  # tile words computed in one step


def from_ranges(
    start: Tensor, end: Tensor, kv_len: int, block_q: int, block_k: int, device: torch.device | str | None
) -> BlockLayout:
    """Layout in which row ``i`` sees keys ``start[r, i] <= j < end[r, i]`` for any ``r``.

    start, end: int64 ``[R, q_len]`` on the CPU; clipped to the keys that exist; ranges may be empty, overlap,
        and come in any order.
    """
    q_len = start.shape[1]
    grid = Grid(1, 1, block_q, block_k, q_len, kv_len)
    start, end = _disjoint(start.clamp(0, kv_len), end.clamp(0, kv_len))
    rows_pad = grid.rows * block_q - q_len
    start, end = (
        torch.nn.functional.pad(x, (0, rows_pad)).unflatten(1, (grid.rows, block_q)) for x in (start, end)
    )
    kept = entries.Gathered(grid)
    step = max(1, CHUNK_CELLS // max(1, grid.cols))
    for first in range(0, grid.rows, step):
        lo, hi = start[:, first : first + step], end[:, first : first + step]
        touched, whole = _classify(lo, hi, grid, first)
        row, col = touched.nonzero(as_tuple=True)
        cut = ~whole[row, col]
        kept.add(row + first, col, cut, *_tiles(lo, hi, row[cut], col[cut], grid))
    layout = BlockLayout._from_entries(grid, kept.entries())
    return layout if device is None else layout.to(device)


def _disjoint(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The same sets as ranges that neither overlap nor touch (emptied where merged away)."""
    start, end = start.clone(), end.clone()
    for r in range(start.shape[0]):  # an empty range is moved to where the one before it starts
        before = start[r - 1] if r else torch.zeros_like(start[0])
        empty = start[r] >= end[r]
        start[r] = torch.where(empty, before, start[r])
        end[r] = torch.where(empty, before, end[r])
    if bool((start[1:] < start[:-1]).any()):
        start, order = start.sort(dim=0)
        end = end.gather(0, order)
    for r in range(1, start.shape[0]):
        joined = start[r] <= end[r - 1]
        start[r] = torch.where(joined, start[r - 1], start[r])
        end[r] = torch.where(joined, torch.maximum(end[r - 1], end[r]), end[r])
        end[r - 1] = torch.where(joined, start[r - 1], end[r - 1])
    return start, end


def _classify(lo: Tensor, hi: Tensor, grid: Grid, first: int) -> tuple[Tensor, Tensor]:
    """Which key blocks some row of a query block touches, and which all its rows cover: bool ``[blocks,
    cols]`` each.

    lo, hi: ``[R, blocks, block_q]``, disjoint ranges.
    """
    blocks, cols = lo.shape[1], grid.cols
    alive = lo < hi
    at = torch.arange(blocks).view(1, -1, 1).expand_as(lo) * (cols + 1)

    def covering(begin: Tensor, stop: Tensor) -> Tensor:
        """Number of ranges of each query block's rows that include each key block."""
        some = alive & (begin < stop)
        edge = torch.zeros(blocks * (cols + 1), dtype=torch.int32)
        one = torch.ones((), dtype=torch.int32).expand(int(some.sum()))
        edge.index_add_(0, (at + begin)[some], one)
        edge.index_add_(0, (at + stop)[some], -one)
        return edge.view(blocks, cols + 1).cumsum(1, dtype=torch.int32)[:, :cols]

    last_whole = torch.where(hi == grid.kv_len, cols, hi // grid.block_k)  # the last block may be short
    touched = covering(lo // grid.block_k, -(-hi // grid.block_k)) > 0
    rows = grid.rows_in(torch.arange(first, first + blocks))
    whole = covering(-(-lo // grid.block_k), last_whole) == rows[:, None]
    return touched, whole


def _tiles(lo: Tensor, hi: Tensor, row: Tensor, col: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Bit tiles of the blocks (row, col), shared: (pool, slot)."""
    n_words = bits.words(grid.block_k)
    step = max(1, CHUNK_WORDS // (grid.block_q * n_words))
    pools, slots, used = [entries.no_tiles(grid, lo.device)], [row[:0]], 0
    alive = lo < hi
    least = lo.masked_fill(~alive, grid.kv_len).amin(2)  # [R, blocks]: where any row's range begins and ends
    most = hi.masked_fill(~alive, 0).amax(2)
    for r, c in zip(row.split(step), col.split(step), strict=False):
        tile = torch.zeros(r.numel(), grid.block_q, n_words, dtype=torch.int64)
        for n in range(lo.shape[0]):  # most ranges of a row miss most of its blocks
            near = (least[n][r] < (c + 1) * grid.block_k) & (most[n][r] > c * grid.block_k)
            base = c[near, None] * grid.block_k
            begin, stop = ((x[n][r[near]] - base).clamp_(0, grid.block_k) for x in (lo, hi))
            tile[near] |= bits.below(stop, n_words) & ~bits.below(begin, n_words)
        pool, slot = bits.share(bits.to_int32(tile))
        pools.append(pool)
        slots.append(slot + used)
        used += pool.shape[0]
    return torch.cat(pools), torch.cat(slots)
