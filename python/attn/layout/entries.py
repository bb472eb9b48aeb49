"""A layout as one sorted list of kept blocks: the form in which layouts are combined, transposed, compared
and counted.

The public form (a list of key blocks per query block, once for cut and once for whole blocks) is what kernels
walk; set algebra is simpler on coordinates. Everything here is vectorised, costs O(kept blocks), and runs on
the layout's device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from . import bits

WHOLE = -1


class Sizes(TypedDict):
    """The size arguments of BlockLayout."""

    block_q: int
    block_k: int
    q_len: int
    kv_len: int


@dataclass(frozen=True)
class Grid:
    """The block grid of a layout: sizes only."""

    batch: int
    heads: int
    block_q: int
    block_k: int
    q_len: int
    kv_len: int

    @property
    def sizes(self) -> Sizes:
        return Sizes(block_q=self.block_q, block_k=self.block_k, q_len=self.q_len, kv_len=self.kv_len)

    @property
    def rows(self) -> int:
        """Number of query blocks, M."""
        return -(-self.q_len // self.block_q)

    @property
    def cols(self) -> int:
        """Number of key blocks."""
        return -(-self.kv_len // self.block_k)

    @property
    def transposed(self) -> Grid:
        return Grid(self.batch, self.heads, self.block_k, self.block_q, self.kv_len, self.q_len)

    def rows_in(self, row: Tensor) -> Tensor:
        """Tokens in query block ``row`` (int64, any shape): block_q, less for the last one."""
        return (self.q_len - row * self.block_q).clamp(max=self.block_q)

    def keys_in(self, col: Tensor) -> Tensor:
        """Tokens in key block ``col``."""
        return (self.kv_len - col * self.block_k).clamp(max=self.block_k)

    def split(self, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys -> (flattened batch and head, query block, key block)."""
        row = key // self.cols
        return row // self.rows, row % self.rows, key % self.cols


class Entries(NamedTuple):
    """Kept blocks of a layout on a :class:`Grid`."""

    key: Tensor  # int64 [E], ((b * heads + h) * M + i) * cols + j, ascending, each once
    slot: Tensor  # int64 [E], tile of `tiles`, or WHOLE
    tiles: Tensor  # int32 [P, block_q, W]


def no_tiles(grid: Grid, device: torch.device) -> Tensor:
    return torch.zeros(0, grid.block_q, bits.words(grid.block_k), dtype=torch.int32, device=device)


class Gathered:
    """Kept blocks of a one-head grid that come a stretch of query blocks at a time."""

    def __init__(self, grid: Grid) -> None:
        nothing = torch.zeros(0, dtype=torch.int64)
        self.grid = grid
        self.keys, self.slots, self.pools = [nothing], [nothing], [no_tiles(grid, nothing.device)]
        self.used = 0

    def add(self, row: Tensor, col: Tensor, cut: Tensor, pool: Tensor, slot: Tensor) -> None:
        """Blocks (row, col); of those that are ``cut``, tile ``pool[slot]``, the others wholly kept."""
        slot_of = torch.full_like(row, WHOLE)
        slot_of[cut] = slot + self.used
        self.keys.append(row * self.grid.cols + col)
        self.slots.append(slot_of)
        self.pools.append(pool)
        self.used += pool.shape[0]

    def entries(self) -> Entries:
        return simplify(self.grid, torch.cat(self.keys), torch.cat(self.slots), torch.cat(self.pools))


def from_list(grid: Grid, count: Tensor, index: Tensor, slot: Tensor | None) -> tuple[Tensor, Tensor]:
    """One (count, index[, slot]) list of a layout -> (key, slot), in list order."""
    width = index.shape[-1]
    used = torch.arange(width, device=index.device) < count.reshape(-1, 1)
    row, place = used.nonzero(as_tuple=True)
    key = row * grid.cols + index.reshape(count.numel(), width)[row, place].long()
    if slot is None:
        return key, torch.full_like(key, WHOLE)
    return key, slot.reshape(count.numel(), width)[row, place].long()


def to_list(grid: Grid, key: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ascending (key, slot) -> count ``[B, H, M]``, index ``[B, H, M, N]``, slot ``[B, H, M, N]`` with the
    least N; int32.
    """
    rows = grid.batch * grid.heads * grid.rows
    row = key // grid.cols if grid.cols else key
    count = torch.bincount(row, minlength=rows)
    width = int(count.max()) if rows else 0
    place = torch.arange(key.numel(), device=key.device) - (count.cumsum(0) - count)[row]
    index = torch.zeros(rows, width, dtype=torch.int32, device=key.device)
    slots = torch.full_like(index, WHOLE)
    index[row, place] = (key - row * grid.cols).int()
    slots[row, place] = slot.int()
    shape = (grid.batch, grid.heads, grid.rows)
    return count.int().reshape(shape), index.reshape(*shape, width), slots.reshape(*shape, width)


def simplify(grid: Grid, key: Tensor, slot: Tensor, tiles: Tensor) -> Entries:
    """Sort; merge repeats (a token is kept when any of them keeps it); drop empty tiles; mark full ones
    whole; share tiles.
    """
    key, order = torch.sort(key, stable=True)
    slot = slot[order]
    if key.numel() and bool((key[1:] == key[:-1]).any()):
        key, slot, tiles = _merge_repeats(grid, key, slot, tiles)
    cut = slot != WHOLE
    if not bool(cut.any()):
        return Entries(key, slot, no_tiles(grid, key.device))
    tiles, shared = bits.share(tiles)
    slot = torch.where(cut, shared[slot.clamp(min=0)], WHOLE)
    kept = bits.count(tiles)[slot.clamp(min=0)]
    _, row, col = grid.split(key)
    slot = torch.where(cut & (kept == grid.rows_in(row) * grid.keys_in(col)), WHOLE, slot)
    alive = (slot == WHOLE) | (kept > 0)
    key, slot = key[alive], slot[alive]
    return Entries(key, *_drop_unused(slot, tiles))


def _drop_unused(slot: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
    used = torch.zeros(tiles.shape[0], dtype=torch.bool, device=slot.device)
    used[slot[slot != WHOLE]] = True
    renumber = used.cumsum(0) - 1
    return torch.where(slot == WHOLE, WHOLE, renumber[slot.clamp(min=0)]) if tiles.shape[0] else slot, tiles[
        used
    ]


def _merge_repeats(grid: Grid, key: Tensor, slot: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equal neighbouring keys become one; whole wins, else the tiles are or-ed."""
    unique, group = torch.unique_consecutive(key, return_inverse=True)
    whole = torch.zeros(unique.numel(), dtype=torch.bool, device=key.device)
    whole[group[slot == WHOLE]] = True
    cut = ~whole[group]
    merged = torch.zeros(unique.numel(), *tiles.shape[1:], dtype=torch.int32, device=key.device)
    group, slot = group[cut], slot[cut]
    rank = torch.arange(group.numel(), device=key.device) - torch.searchsorted(group, group)
    for r in range(int(rank.max()) + 1 if rank.numel() else 0):  # r-th repeat of every block at once
        here = rank == r
        merged[group[here]] |= tiles[slot[here]]
    new_slot = torch.where(whole, WHOLE, torch.arange(unique.numel(), device=key.device))
    return unique, new_slot, merged


def clip(grid: Grid, entries: Entries) -> Entries:
    """Clear tile bits past the ends of the sequences, which a caller may have left set."""
    if entries.tiles.shape[0] == 0:
        return entries
    _, row, col = grid.split(entries.key)
    short = (grid.rows_in(row) < grid.block_q) | (grid.keys_in(col) < bits.words(grid.block_k) * bits.WORD)
    at = (short & (entries.slot != WHOLE)).nonzero().squeeze(1)
    inside = bits.whole_tile(grid.rows_in(row[at]), grid.keys_in(col[at]), grid.block_q, grid.block_k)
    tiles = entries.tiles[entries.slot[at]]
    if torch.equal(tiles & inside, tiles):
        return entries
    slot = entries.slot.clone()
    slot[at] = torch.arange(at.numel(), device=at.device) + entries.tiles.shape[0]
    return Entries(entries.key, slot, torch.cat([entries.tiles, tiles & inside]))


def union(grid: Grid, a: Entries, b: Entries) -> Entries:
    """Tokens kept by either."""
    slot = torch.cat([a.slot, torch.where(b.slot == WHOLE, WHOLE, b.slot + a.tiles.shape[0])])
    return simplify(grid, torch.cat([a.key, b.key]), slot, torch.cat([a.tiles, b.tiles]))


def intersection(grid: Grid, a: Entries, b: Entries) -> Entries:
    """Tokens kept by both."""
    if b.key.numel() == 0 or a.key.numel() == 0:
        return Entries(a.key[:0], a.slot[:0], a.tiles[:0])
    at = torch.searchsorted(b.key, a.key).clamp(max=b.key.numel() - 1)
    both = b.key[at] == a.key
    key, slot_a, slot_b = a.key[both], a.slot[both], b.slot[at[both]]
    cut_both = (slot_a != WHOLE) & (slot_b != WHOLE)
    anded = a.tiles[slot_a[cut_both]] & b.tiles[slot_b[cut_both]]
    slot = torch.where(
        slot_a != WHOLE, slot_a, torch.where(slot_b == WHOLE, WHOLE, slot_b + a.tiles.shape[0])
    )
    slot[cut_both] = torch.arange(anded.shape[0], device=key.device) + a.tiles.shape[0] + b.tiles.shape[0]
    return simplify(grid, key, slot, torch.cat([a.tiles, b.tiles, anded]))


def transposed(grid: Grid, entries: Entries) -> Entries:
    """Queries and keys exchanged; the result belongs to ``grid.transposed``."""
    group, row, col = grid.split(entries.key)
    key, order = torch.sort((group * grid.cols + col) * grid.rows + row)
    return Entries(key, entries.slot[order], bits.transpose(entries.tiles, grid.block_k))


def broadcast(grid: Grid, entries: Entries, batch: int, heads: int) -> tuple[Grid, Entries]:
    """Repeat a layout of batch 1 and / or one head to the given sizes."""
    if (batch, heads) == (grid.batch, grid.heads):
        return grid, entries
    wide = Grid(batch, heads, grid.block_q, grid.block_k, grid.q_len, grid.kv_len)
    area = grid.rows * grid.cols
    group = torch.arange(batch * heads, device=entries.key.device)
    b, h = group // heads, group % heads
    source = (b if grid.batch > 1 else 0 * b) * grid.heads + (h if grid.heads > 1 else 0 * h)
    start = torch.searchsorted(entries.key, source * area)
    length = torch.searchsorted(entries.key, (source + 1) * area) - start
    owner = torch.repeat_interleave(group, length)
    take = (
        torch.arange(owner.numel(), device=owner.device) - (length.cumsum(0) - length)[owner] + start[owner]
    )
    key = entries.key[take] + (owner - source[owner]) * area
    return wide, Entries(key, entries.slot[take], entries.tiles)


def same(grid: Grid, a: Entries, b: Entries) -> bool:
    """Whether both keep the same tokens."""
    a, b = simplify(grid, *a), simplify(grid, *b)
    cut = a.slot != WHOLE
    if not torch.equal(a.key, b.key) or not torch.equal(cut, b.slot != WHOLE):
        return False
    # Pools are numbered differently; comparing each pair of slots once is enough.
    pairs = torch.unique(a.slot[cut] * max(1, b.tiles.shape[0]) + b.slot[cut])
    slot_a, slot_b = pairs // max(1, b.tiles.shape[0]), pairs % max(1, b.tiles.shape[0])
    return torch.equal(a.tiles[slot_a], b.tiles[slot_b])


def kept_tokens(grid: Grid, entries: Entries) -> Tensor:
    """Kept (row, key) pairs of each batch and head: int64 ``[batch * heads]``."""
    group, row, col = grid.split(entries.key)
    pairs = grid.rows_in(row) * grid.keys_in(col)
    if entries.tiles.shape[0]:
        pairs = torch.where(
            entries.slot == WHOLE, pairs, bits.count(entries.tiles)[entries.slot.clamp(min=0)]
        )
    return torch.zeros(grid.batch * grid.heads, dtype=torch.int64, device=pairs.device).index_add_(
        0, group, pairs
    )
