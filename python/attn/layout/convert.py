"""Ways into BlockLayout from the formats people already have. Each function becomes a classmethod of
BlockLayout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import bits, check, entries
from .entries import WHOLE, Entries, Grid

if TYPE_CHECKING:
    from .block_layout import BlockLayout

# Most tokens looked at in one step while bit tiles are filled: bounds memory, not speed.
CHUNK_TOKENS = 1 << 24


def _as_4d(mask: Tensor, meaning: str) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = kept), got {mask.dtype}; write mask.bool() or mask != 0")
    if not 2 <= mask.dim() <= 4:
        raise ValueError(
            f"mask must be {meaning} with up to two leading dimensions [B|1, H|1], "
            f"got shape {list(mask.shape)}"
        )
    mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
    for dim in (0, 1):  # an expanded batch or head is one pattern; an empty mask has any strides
        if mask.shape[dim] > 1 and mask.stride(dim) == 0 and mask.numel() > 0:
            mask = mask.narrow(dim, 0, 1)
    return mask


def from_mask(
    cls: type[BlockLayout],
    mask: Tensor,
    *,
    block_q: int = 64,
    block_k: int = 64,
    q_len: int | None = None,
    kv_len: int | None = None,
) -> BlockLayout:
    """Layout of wholly kept blocks from a bool block mask.

    Args:
        mask: bool ``[M, N]``, ``[H|1, M, N]`` or ``[B|1, H|1, M, N]``; True = block kept.
        block_q, block_k: tokens per block.
        q_len, kv_len: tokens; default ``M * block_q`` and ``N * block_k``.

    One kernel, static shapes and no synchronisation: usable on the device's stream and while tracing.
    """
    mask = _as_4d(mask, "[M, N]")
    q_len = mask.shape[2] * block_q if q_len is None else q_len
    kv_len = mask.shape[3] * block_k if kv_len is None else kv_len
    check.check_sizes(block_q, block_k, q_len, kv_len)
    grid = Grid(mask.shape[0], mask.shape[1], block_q, block_k, q_len, kv_len)
    if (grid.rows, grid.cols) != tuple(mask.shape[2:]):
        raise ValueError(
            f"mask must have [M, N] = [ceil({q_len} / {block_q}), ceil({kv_len} / {block_k})] = "
            f"[{grid.rows}, {grid.cols}] blocks, got {list(mask.shape[2:])}"
        )
    count, index = torch.ops.attn.layout_build(mask if mask.stride(-1) == 1 else mask.contiguous())
    return cls(count, index, **grid.sizes, validate=False)


def from_token_mask(
    cls: type[BlockLayout], mask: Tensor, block_q: int = 64, block_k: int = 64
) -> BlockLayout:
    """Exact layout of a bool token mask ``[Tq, Tk]``, ``[H|1, Tq, Tk]`` or ``[B|1, H|1, Tq, Tk]`` (True =
    kept).

    Costs a few passes over the mask. The patterns of :mod:`attn.patterns` build the common ones without a
    mask.
    """
    mask = _as_4d(mask, "[Tq, Tk]")
    batch, heads, q_len, kv_len = mask.shape
    check.check_sizes(block_q, block_k, q_len, kv_len)
    grid = Grid(batch, heads, block_q, block_k, q_len, kv_len)
    pad = (0, grid.cols * block_k - kv_len, 0, grid.rows * block_q - q_len)
    keys, slots, pools, used = [], [], [], 0
    for group, one in enumerate(mask.flatten(0, 1)):
        blocks = (
            torch.nn.functional.pad(one, pad)
            .unflatten(0, (grid.rows, block_q))
            .unflatten(2, (grid.cols, block_k))
        )
        kept = blocks.any(3).any(1)
        row, col = kept.nonzero(as_tuple=True)
        tiles = [entries.no_tiles(grid, mask.device)]
        for at in torch.arange(row.numel()).split(_tiles_per_step(grid)):
            tiles.append(bits.pack(blocks[row[at], :, col[at]]))
        pool, slot = bits.share(torch.cat(tiles))
        keys.append((group * grid.rows + row) * grid.cols + col)
        slots.append(slot + used)
        pools.append(pool)
        used += pool.shape[0]
    if not keys:
        return cls._from_entries(grid, _nothing(grid, mask.device))
    return cls._from_entries(
        grid, entries.simplify(grid, torch.cat(keys), torch.cat(slots), torch.cat(pools))
    )


def _tiles_per_step(grid: Grid) -> int:
    return max(1, CHUNK_TOKENS // (grid.block_q * grid.block_k))


def _nothing(grid: Grid, device: torch.device) -> Entries:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Entries(none, none, entries.no_tiles(grid, device))


def from_bsr(
    cls: type[BlockLayout],
    indptr: Tensor,
    indices: Tensor,
    *,
    kv_len: int,
    q_len: int | None = None,
    block_q: int = 64,
    block_k: int = 64,
    mask: Tensor | None = None,
) -> BlockLayout:
    """Layout from block compressed sparse rows.

    Args:
        indptr: integer ``[M + 1]`` (FlashInfer, SciPy) or ``[H, M + 1]`` (S2-Attention): row ``i`` owns
            ``indices[indptr[i]:indptr[i + 1]]``. Starts at 0 and never falls.
        indices: integer ``[nnz]`` or ``[H, nnz_max]``: key blocks, in any order; entries past the last
            ``indptr`` are ignored.
        kv_len, q_len: tokens; ``q_len`` defaults to ``M * block_q``.
        mask: bool ``[nnz, block_q, block_k]`` (one-head form only), True = token kept; None keeps whole
            blocks.
    """
    for name, tensor in (("indptr", indptr), ("indices", indices)):
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise TypeError(
                f"{name} must be an integer tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}"
            )
    if indptr.dim() not in (1, 2) or indices.dim() != indptr.dim() or indptr.shape[-1] < 1:
        raise ValueError(
            f"indptr and indices must be [M + 1] and [nnz], or [H, M + 1] and [H, nnz_max]; "
            f"got {list(indptr.shape)} and {list(indices.shape)}"
        )
    if mask is not None and (
        indptr.dim() != 1 or mask.dtype != torch.bool or mask.shape != (indices.numel(), block_q, block_k)
    ):
        raise ValueError(
            f"mask must be bool [nnz, block_q, block_k] = [{indices.numel()}, {block_q}, {block_k}] "
            f"with one-head indptr, got {mask.dtype} {list(mask.shape)}"
        )
    indptr, indices = (
        indptr.long().reshape(-1, indptr.shape[-1]),
        indices.long().reshape(indptr.reshape(-1, indptr.shape[-1]).shape[0], -1),
    )
    rows = indptr.shape[1] - 1
    q_len = rows * block_q if q_len is None else q_len
    check.check_sizes(block_q, block_k, q_len, kv_len)
    grid = Grid(1, indptr.shape[0], block_q, block_k, q_len, kv_len)
    if rows != grid.rows:
        raise ValueError(
            f"indptr must have ceil(q_len / block_q) + 1 = {grid.rows + 1} entries for q_len={q_len}, "
            f"got {rows + 1}"
        )
    length = indptr.diff(dim=1)
    if bool((indptr[:, 0] != 0).any() or (length < 0).any() or (indptr[:, -1] > indices.shape[1]).any()):
        bad = (indptr[:, 0] != 0) | (length < 0).any(1) | (indptr[:, -1] > indices.shape[1])
        given = indptr[int(bad.nonzero()[0])].tolist()
        shown = given if len(given) <= 16 else [*given[:16], "..."]
        raise ValueError(
            f"indptr must start at 0, never fall, and end within the {indices.shape[1]} entries of indices, "
            f"got {shown}"
        )
    used = torch.arange(indices.shape[1], device=indices.device) < indptr[:, -1:]
    col = indices[used]
    if bool(((col < 0) | (col >= grid.cols)).any()):
        wrong = col[(col < 0) | (col >= grid.cols)][0]
        raise ValueError(
            f"indices must be key blocks in [0, {grid.cols}) for kv_len={kv_len}, got {int(wrong)}"
        )
    row = torch.repeat_interleave(torch.arange(length.numel(), device=col.device), length.flatten())
    slot, tiles = torch.full_like(col, WHOLE), entries.no_tiles(grid, col.device)
    if mask is not None:
        inside = bits.whole_tile(grid.rows_in(row % grid.rows), grid.keys_in(col), block_q, block_k)
        tiles, slot = bits.share(bits.pack(mask[: col.numel()]) & inside)
    return cls._from_entries(grid, entries.simplify(grid, row * grid.cols + col, slot, tiles))


def from_block_mask(cls: type[BlockLayout], flex: Any) -> BlockLayout:
    """Layout of a FlexAttention ``BlockMask``, exact to the token.

    Block counts and indices are used as they are (no copy) when they are int32 and ascending, which is what
    ``create_block_mask`` makes; other lists are sorted first. ``mask_mod`` is evaluated on the partial blocks
    only, to fill their bit tiles; full blocks are taken as full. ``score_mod`` is not part of a BlockMask and
    is not represented.
    """
    for name in ("kv_num_blocks", "kv_indices", "BLOCK_SIZE", "mask_mod", "seq_lengths"):
        if not hasattr(flex, name):
            raise TypeError(
                "flex must be a torch.nn.attention.flex_attention.BlockMask, "
                f"got {type(flex).__name__} without .{name}"
            )
    block_q, block_k = flex.BLOCK_SIZE
    q_len, kv_len = flex.seq_lengths
    count, index = _ascending(flex.kv_num_blocks, flex.kv_indices)
    full_count, full_index = flex.full_kv_num_blocks, flex.full_kv_indices
    if full_count is not None:
        full_count, full_index = _ascending(full_count, full_index)
    grid = Grid(count.shape[0], count.shape[1], block_q, block_k, q_len, kv_len)
    # Refuses what we cannot represent before mask_mod is evaluated.
    cls(count, index, full_count=full_count, full_index=full_index, **grid.sizes)
    slot = tiles = None
    key, _ = entries.from_list(grid, count, index, None)
    if key.numel():
        tiles, tile_of = _evaluate(flex.mask_mod, grid, key)
        _, row, col = grid.split(key)
        whole = bits.count(tiles)[tile_of] == grid.rows_in(row) * grid.keys_in(col)
        if bool(whole.all()):
            tiles = None
        else:
            slot = torch.full_like(index, WHOLE)
            used = torch.arange(index.shape[-1], device=index.device) < count.unsqueeze(-1)
            slot[used] = torch.where(whole, WHOLE, tile_of).int()
    return cls(
        count,
        index,
        full_count=full_count,
        full_index=full_index,
        partial_slot=slot,
        partial_bits=tiles,
        **grid.sizes,
    )


def _ascending(count: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """int32 lists with ascending rows; the tensors given where they are so already."""
    count, index = count.int(), index.int()
    past_all = torch.iinfo(torch.int32).max
    shown = index.masked_fill(
        torch.arange(index.shape[-1], device=index.device) >= count.unsqueeze(-1), past_all
    )
    if bool((shown[..., 1:] < shown[..., :-1]).any()):
        shown = shown.sort(-1).values
        return count, shown.masked_fill(shown == past_all, 0)
    return count, index


def _evaluate(mask_mod: Any, grid: Grid, key: Tensor) -> tuple[Tensor, Tensor]:
    """mask_mod on the blocks ``key`` -> (pool, slot of each block). Called on scalars under vmap, as
    FlexAttention does.
    """
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    over_keys = torch.vmap(mask_mod, in_dims=(None, None, None, 0))
    over_rows = torch.vmap(over_keys, in_dims=(None, None, 0, None))
    over_blocks = torch.vmap(over_rows, in_dims=(0, 0, 0, 0))
    pools, slots, used = [], [], 0
    for part in key.split(_tiles_per_step(grid)):
        group, row, col = grid.split(part)
        q = row[:, None] * grid.block_q + torch.arange(grid.block_q, device=key.device)
        k = col[:, None] * grid.block_k + torch.arange(grid.block_k, device=key.device)
        with TransformGetItemToIndex():  # lets mask_mod index captured tensors with its scalar arguments
            # Tokens past the end repeat the last: a mask_mod may index tensors of the sequence's length.
            kept = over_blocks(
                group // grid.heads,
                group % grid.heads,
                q.clamp(max=grid.q_len - 1),
                k.clamp(max=grid.kv_len - 1),
            )
        inside = (q < grid.q_len)[:, :, None] & (k < grid.kv_len)[:, None, :]
        pool, slot = bits.share(bits.pack(kept.bool() & inside))
        pools.append(pool)
        slots.append(slot + used)
        used += pool.shape[0]
    pool, merged = bits.share(torch.cat(pools))
    return pool, merged[torch.cat(slots)]
