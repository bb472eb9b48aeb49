"""Checks of a layout argument, and its form for the ops."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..layout import BlockLayout
from .arguments import same_place


def matching(layout: Any, q: Tensor, k: Tensor) -> BlockLayout:
    layout = _layout(layout, q)
    if layout.q_len != q.shape[2] or layout.kv_len != k.shape[2]:
        raise ValueError(
            f"layout must be for the tokens of q and k, {q.shape[2]} and {k.shape[2]}, "
            f"got {layout.q_len} and {layout.kv_len}"
        )
    return layout


def within(layout: Any, q: Tensor, capacity: int) -> BlockLayout:
    """As :func:`matching`, for a cache of that many keys, of which the layout may know fewer."""
    layout = _layout(layout, q)
    if layout.q_len != q.shape[2] or layout.kv_len > capacity:
        raise ValueError(
            f"layout must be for Tq = {q.shape[2]} queries and at most {capacity} keys, "
            f"got {layout.q_len} and {layout.kv_len}"
        )
    return layout


def _layout(layout: Any, q: Tensor) -> BlockLayout:
    if not isinstance(layout, BlockLayout):
        raise TypeError(
            f"layout must be an attn.BlockLayout, got {type(layout).__name__}; "
            "a boolean mask becomes one with attn.BlockLayout.from_token_mask"
        )
    if layout.batch != 1 and layout.batch != q.shape[0]:
        raise ValueError(f"layout must have a batch size of 1 or that of q, {q.shape[0]}, got {layout.batch}")
    if layout.heads != 1 and layout.heads != q.shape[1]:
        raise ValueError(f"layout must have 1 head or the heads of q, {q.shape[1]}, got {layout.heads}")
    same_place("layout", layout.kv_count, q)
    return layout


def tensors(layout: BlockLayout) -> tuple[Tensor | None, ...]:
    """The six lists and tiles of a layout, as the ops take them."""
    lists = (layout.kv_count, layout.kv_index, layout.full_count, layout.full_index)
    tiles = (layout.partial_slot, layout.partial_bits)
    return tuple(x if x is None else x.contiguous() for x in lists + tiles)
