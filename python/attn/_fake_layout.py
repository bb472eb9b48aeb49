"""Fake implementations of the layout ops (see _fake.py)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("attn::layout_build")
def _layout_build(mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask.new_empty(mask.shape[:3], dtype=torch.int32), mask.new_empty(mask.shape, dtype=torch.int32)


@torch.library.register_fake("attn::layout_transpose")
def _layout_transpose(
    kv_count: Tensor,
    kv_index: Tensor,
    full_count: Tensor | None,
    full_index: Tensor | None,
    partial_slot: Tensor | None,
    partial_bits: Tensor | None,
    block_q: int,
    block_k: int,
    columns: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, rows = kv_count.shape
    lists, entries, none = (batch, heads, columns), (batch, heads, columns, rows), (0,)
    full, cut = full_count is not None, partial_bits is not None
    tiles = none if partial_bits is None else (partial_bits.shape[0], block_k, (block_q + 31) // 32)
    return (
        kv_count.new_empty(lists),
        kv_count.new_empty(entries),
        kv_count.new_empty(lists if full else none),
        kv_count.new_empty(entries if full else none),
        kv_count.new_empty(entries if cut else none),
        kv_count.new_empty(tiles),
    )
