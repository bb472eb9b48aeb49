"""BlockLayout as a pytree node: its tensors are leaves, its sizes are static."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree

from .block_layout import BlockLayout

TENSORS = ("kv_count", "kv_index", "full_count", "full_index", "partial_slot", "partial_bits")
SIZES = ("block_q", "block_k", "q_len", "kv_len")


def _flatten(layout: BlockLayout) -> tuple[list[Any], Any]:
    return [getattr(layout, name) for name in TENSORS], tuple(getattr(layout, name) for name in SIZES)


def _flatten_with_keys(layout: BlockLayout) -> tuple[list[Any], Any]:
    leaves, sizes = _flatten(layout)
    return [(pytree.GetAttrKey(name), leaf) for name, leaf in zip(TENSORS, leaves, strict=True)], sizes


def _unflatten(leaves: Any, sizes: Any) -> BlockLayout:
    # Not through __init__: leaves of a pytree may be anything (None, shapes, axes), so nothing is checked.
    layout = object.__new__(BlockLayout)
    for name, leaf in zip(TENSORS, leaves, strict=True):
        setattr(layout, name, leaf)
    for name, size in zip(SIZES, sizes, strict=True):
        setattr(layout, name, size)
    layout._transposed = None
    return layout


def register() -> None:
    pytree.register_pytree_node(
        BlockLayout,
        _flatten,
        _unflatten,
        serialized_type_name="attn.BlockLayout",
        flatten_with_keys_fn=_flatten_with_keys,
    )
