"""The heterogeneous strided pattern of S2-Attention as a layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import BlockLayout, bits, entries
from ..layout.check import check_sizes
from ..layout.entries import WHOLE, Grid

CHUNK_CELLS = 1 << 22


class _Rule(NamedTuple):
    """What one head keeps. Positions and key indices are in tokens; `shift` None keeps everything (a dense
    head).
    """

    block_size: int
    left: int
    right: int
    stride: int
    shift: int | None
    causal: bool

    def keeps_block(self, i: Tensor, j: Tensor) -> Tensor:
        """S2 blocks at coordinates i (position // block_size) and j, broadcast."""
        if self.shift is None:
            everything = torch.ones((), dtype=torch.bool).expand(torch.broadcast_shapes(i.shape, j.shape))
            return everything & (j <= i) if self.causal else everything
        if self.causal:
            return ((j > i - self.left) | ((j + self.shift) % self.stride == 0)) & (j <= i)
        past = (i - j - self.left + 1).clamp(min=0) + (j - i - self.right + 1).clamp(min=0)
        return past % self.stride == 0


def strided(
    q_len: int,
    kv_len: int,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    block_size: int = 64,
    local_blocks: int | tuple[int, int] = 8,
    vert_stride: int = 8,
    head_offset: int = 0,
    head_step: int | None = None,
    dense_heads: int = 0,
    homogeneous: bool = False,
    causal: bool = True,
    block_q: int = 64,
    block_k: int = 64,
    device: torch.device | str | None = None,
) -> BlockLayout:
    """S2-Attention: local blocks and every ``vert_stride``-th key block, shifted from head to head.

    On blocks of ``block_size`` tokens, a row in block ``i`` (of its position ``p = row + kv_len - q_len``)
    sees key block ``j`` of kv head ``g`` when ``i - local_blocks < j <= i`` or ``(j + g * head_step +
    head_offset) % vert_stride == 0``, and only keys up to ``p``.

    Not causal (``q_len == kv_len``): with ``a = max(0, i - j - left + 1)`` and ``c = max(0, j - i - right +
    1)``, where ``(left, right)`` is ``local_blocks`` (an int stands for both; each counts the block itself),
    kept when ``(a + c) % vert_stride == 0``, for all heads alike.

    Args:
        num_heads, num_kv_heads: query and kv heads; the query heads of a group share the pattern of their kv
            head.
        head_step: None = ``max(1, vert_stride // num_heads)``.
        dense_heads: the last kv heads keep everything (subject to ``causal``).
        homogeneous: all (not dense) heads use the pattern of kv head 0.

    Returns:
        Layout ``[1, num_heads, q_len, kv_len]``, or ``[1, 1, ...]`` when all heads are alike. ``block_q`` and
        ``block_k`` are the layout's blocks; it is smallest when they equal ``block_size``.

    S2-Attention, arXiv 2407.17678. Phi-3-small's formulation is ``head_offset=1``.
    """
    check_sizes(block_q, block_k, q_len, kv_len)
    left, right = (local_blocks, local_blocks) if isinstance(local_blocks, int) else local_blocks
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    for name, value, least in (
        ("num_heads", num_heads, 1),
        ("num_kv_heads", num_kv_heads, 1),
        ("local_blocks", min(left, right), 1),
        ("vert_stride", vert_stride, 1),
        ("dense_heads", dense_heads, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
    if not isinstance(block_size, int) or block_size <= 0 or block_size % 16:
        raise ValueError(f"block_size must be a positive multiple of 16, got {block_size!r}")
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads must be a multiple of num_kv_heads, got {num_heads} and {num_kv_heads}")
    if dense_heads > num_kv_heads:
        raise ValueError(f"dense_heads must be at most num_kv_heads = {num_kv_heads}, got {dense_heads}")
    if not causal and q_len != kv_len:
        raise ValueError(f"causal=False needs q_len == kv_len, got {q_len} and {kv_len}")
    step = max(1, vert_stride // num_heads) if head_step is None else head_step
    shifts: list[int | None] = []
    for g in range(num_kv_heads):
        dense = g >= num_kv_heads - dense_heads or vert_stride == 1
        phase = 0 if homogeneous or not causal else g
        shifts.append(None if dense else (phase * step + head_offset) % vert_stride)
    if len(set(shifts)) == 1:
        shifts, group = shifts[:1], 1
    else:
        group = num_heads // num_kv_heads
    grid = Grid(1, 1, block_q, block_k, q_len, kv_len)
    kinds = list(dict.fromkeys(shifts))
    made = [
        BlockLayout._from_entries(grid, _head(grid, _Rule(block_size, left, right, vert_stride, s, causal)))
        for s in kinds
    ]
    layout = _stack_heads(made, [kinds.index(s) for s in shifts for _ in range(group)])
    return layout if device is None else layout.to(device)


def _stack_heads(kinds: list[BlockLayout], kind_of: list[int]) -> BlockLayout:
    """Layout whose head h is the one-head layout ``kinds[kind_of[h]]``; the tile pools are merged."""
    one, heads = kinds[0], torch.tensor(kind_of)

    def stack(parts: list[Tensor]) -> Tensor:
        width = max(part.shape[-1] for part in parts)
        padded = [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
        return torch.cat(padded, dim=1)[:, heads]

    count = torch.cat([kind.kv_count for kind in kinds], dim=1)[:, heads]
    if all(kind.partial_bits is None for kind in kinds):
        index = stack([kind.kv_index for kind in kinds])
        return BlockLayout(count, index, **one._grid().sizes, validate=False)
    pools, used = [], 0
    cut, full = [], []  # (count, index, slot) and (count, index) of each kind
    for kind in kinds:
        nothing = (torch.zeros_like(kind.kv_count), kind.kv_index[..., :0])
        if kind.partial_slot is None or kind.partial_bits is None:
            cut.append((*nothing, nothing[1]))
            full.append((kind.kv_count, kind.kv_index))
            continue
        slot = torch.where(kind.partial_slot == WHOLE, WHOLE, kind.partial_slot + used)
        cut.append((kind.kv_count, kind.kv_index, slot))
        full.append(kind._lists()[-1][:2] if kind.full_count is not None else nothing)
        pools.append(kind.partial_bits)
        used += kind.partial_bits.shape[0]
    pool, merged = bits.share(torch.cat(pools))
    slot = stack([s for _, _, s in cut])
    return BlockLayout(
        torch.cat([c for c, _, _ in cut], dim=1)[:, heads],
        stack([index for _, index, _ in cut]),
        full_count=torch.cat([c for c, _ in full], dim=1)[:, heads],
        full_index=stack([index for _, index in full]),
        partial_slot=torch.where(slot == WHOLE, WHOLE, merged[slot.clamp(min=0)].int()),
        partial_bits=pool,
        **one._grid().sizes,
        validate=False,
    )


def _head(grid: Grid, rule: _Rule) -> entries.Entries:
    """Kept blocks of one head: counts of S2 blocks inside each layout block decide kept, cut or whole."""
    offset = grid.kv_len - grid.q_len
    col = torch.arange(grid.cols)
    first_j = col * grid.block_k // rule.block_size
    end_j = -(-((col + 1) * grid.block_k).clamp(max=grid.kv_len) // rule.block_size)
    kept = entries.Gathered(grid)
    step = max(1, CHUNK_CELLS // max(1, grid.cols))
    for first in range(0, grid.rows, step):
        row = torch.arange(first, min(first + step, grid.rows))
        first_p = row * grid.block_q + offset
        last_p = first_p + grid.rows_in(row) - 1
        first_i, end_i = first_p // rule.block_size, last_p // rule.block_size + 1
        inside = torch.zeros(row.numel(), grid.cols, dtype=torch.int32)
        for di in range(int((end_i - first_i).max())):
            for dj in range(int((end_j - first_j).max()) if grid.cols else 0):
                i, j = (first_i + di)[:, None], first_j + dj
                inside += rule.keeps_block(i, j) & (i < end_i[:, None]) & (j < end_j)
        whole = inside == ((end_i - first_i)[:, None] * (end_j - first_j))
        if rule.causal:
            whole &= ((col + 1) * grid.block_k).clamp(max=grid.kv_len) - 1 <= first_p[:, None]
            inside = torch.where(col * grid.block_k <= last_p[:, None], inside, 0)
        r, c = (inside > 0).nonzero(as_tuple=True)
        cut = ~whole[r, c]
        r += first
        kept.add(r, c, cut, *_tiles(grid, rule, r[cut], c[cut]))
    return kept.entries()


def _alike(grid: Grid, rule: _Rule, row: Tensor, col: Tensor) -> Tensor:
    """int64 label per block (row, col); blocks with one label have one tile.

    A tile follows from where its corner lies inside its S2 block and from ``i - j`` there; far from the
    diagonal, from ``i - j`` modulo the stride (causal: not at all, only from ``j`` modulo the stride). So
    there are few tiles, however long the sequence.
    """
    p, k = row * grid.block_q + (grid.kv_len - grid.q_len), col * grid.block_k
    i, j = p // rule.block_size, k // rule.block_size
    last_i, last_j = (p + grid.block_q - 1) // rule.block_size, (k + grid.block_k - 1) // rule.block_size
    past, future = i - last_j >= rule.left, j - last_i >= rule.right
    far = past | future
    if rule.causal:
        gap, phase_q, residue = (
            torch.where(far, 0, i - j),
            torch.where(far, 0, p % rule.block_size),
            j % rule.stride,
        )
    else:
        gap, phase_q, residue = (
            torch.where(far, (i - j) % rule.stride, i - j),
            p % rule.block_size,
            torch.zeros_like(j),
        )
    label = gap - int(gap.min()) if gap.numel() else gap
    for digit, base in (
        (past + 2 * future, 3),
        (phase_q, rule.block_size),
        (k % rule.block_size, rule.block_size),
        (residue, rule.stride),
        (row == grid.rows - 1, 2),
        (col == grid.cols - 1, 2),
    ):
        label = label * base + digit
    return label


def _tiles(grid: Grid, rule: _Rule, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """Bit tiles of the blocks (row, col), shared: (pool, slot)."""
    labels, kind = torch.unique(_alike(grid, rule, row, col), return_inverse=True)
    example = torch.empty_like(labels).scatter_(0, kind, torch.arange(kind.numel()))
    pool, slot = _compute_tiles(grid, rule, row[example], col[example])
    return pool, slot[kind]


def _compute_tiles(grid: Grid, rule: _Rule, row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_tiles`, block by block. Works on half words: S2 blocks start at multiples of 16 keys."""
    n_words = bits.words(grid.block_k)
    pools, slots, used = [entries.no_tiles(grid, row.device)], [row[:0]], 0
    step = max(1, CHUNK_CELLS // (grid.block_q * n_words * 2))
    for r, c in zip(row.split(step), col.split(step), strict=False):
        p = r[:, None] * grid.block_q + torch.arange(grid.block_q) + (grid.kv_len - grid.q_len)
        key = c[:, None] * grid.block_k + torch.arange(2 * n_words) * 16
        half = rule.keeps_block(
            (p // rule.block_size)[:, :, None], (key // rule.block_size)[:, None, :]
        ).unflatten(2, (n_words, 2))
        word = half[..., 0] * 0xFFFF + half[..., 1] * 0xFFFF0000
        limit = (p + 1 if rule.causal else torch.full_like(p, grid.kv_len)) - c[:, None] * grid.block_k
        limit = torch.minimum(limit, grid.keys_in(c)[:, None]).clamp(min=0)
        exists = r[:, None] * grid.block_q + torch.arange(grid.block_q) < grid.q_len
        word = torch.where(exists[..., None], word & bits.below(limit, n_words), 0)
        pool, slot = bits.share(bits.to_int32(word))
        pools.append(pool)
        slots.append(slot + used)
        used += pool.shape[0]
    return torch.cat(pools), torch.cat(slots)
