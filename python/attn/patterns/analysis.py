"""Questions about layouts that decide how a key-value cache can be managed."""

from __future__ import annotations

import torch

from ..layout import BlockLayout, entries
from .windows import sliding_window


def kv_efficient(layout: BlockLayout) -> bool:
    """Whether a key block that a later query block has skipped is never needed again, so that a decoder may
    evict it.

    Over the query blocks that lie wholly after a key block (row ``i`` at position ``i + kv_len - q_len``),
    the key block must be kept by the first few and by none after: ``kept(i + 1, j) <= kept(i, j)``.
    S2-Attention's causal rule is KV-efficient, its bidirectional one is not (arXiv 2407.17678). Looks at
    blocks, so a layout should use the block size of its cache. Must hold in every batch and head.
    """
    grid, kept = layout._grid(), layout._entries()
    turned = entries.transposed(grid, kept)
    group, col, row = grid.transposed.split(turned.key)
    offset = layout.kv_len - layout.q_len
    end_of_block = ((col + 1) * layout.block_k).clamp(max=layout.kv_len)
    first_after = ((end_of_block - offset).clamp(min=0) + layout.block_q - 1) // layout.block_q
    later = row >= first_after
    column, row, first_after = (group * grid.cols + col)[later], row[later], first_after[later]
    rank = torch.arange(row.numel(), device=row.device) - torch.searchsorted(column, column)
    return bool((row == first_after + rank).all())


def union_over_heads(layout: BlockLayout) -> BlockLayout:
    """Layout ``[B|1, 1, q_len, kv_len]`` of the tokens that at least one head keeps."""
    grid, kept = layout._grid(), layout._entries()
    one = entries.Grid(grid.batch, 1, grid.block_q, grid.block_k, grid.q_len, grid.kv_len)
    group, row, col = grid.split(kept.key)
    key = (group // max(1, grid.heads) * grid.rows + row) * grid.cols + col
    return BlockLayout._from_entries(one, entries.simplify(one, key, kept.slot, kept.tiles))


def covers(layout: BlockLayout, *, causal: bool = True) -> bool:
    """Whether the heads together keep every (row, key) pair (with ``causal``, every pair with the key not
    after the row), in each batch.

    For S2-Attention this is the condition under which no token is lost to the model: enough heads with shifts
    that reach every residue of ``vert_stride``.
    """
    everything = sliding_window(
        layout.q_len,
        layout.kv_len,
        window=(-1, -1),
        causal=causal,
        block_q=layout.block_q,
        block_k=layout.block_k,
        device=layout.device,
    )
    union = union_over_heads(layout)
    missing = int(entries.kept_tokens(everything._grid(), everything._entries()).sum())
    kept = union & everything
    return bool((entries.kept_tokens(kept._grid(), kept._entries()) == missing).all())
