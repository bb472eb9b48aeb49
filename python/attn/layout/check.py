"""What a BlockLayout must satisfy; errors name the argument, what was given and what is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..capability import dtype_name
from . import bits

if TYPE_CHECKING:
    from .block_layout import BlockLayout

BLOCK_MULTIPLE = 16


def check_sizes(block_q: int, block_k: int, q_len: int, kv_len: int) -> None:
    for name, value in (("block_q", block_q), ("block_k", block_k)):
        if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value <= 0 or value % BLOCK_MULTIPLE:
            raise ValueError(f"{name} must be a positive multiple of {BLOCK_MULTIPLE}, got {value}")
    for name, value in (("q_len", q_len), ("kv_len", kv_len)):
        if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")


def _int32(name: str, tensor: object, like: Tensor | None = None) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {dtype_name(tensor.dtype)}; convert with .int()")
    if like is not None and tensor.device != like.device:
        raise ValueError(
            f"{name} is on {tensor.device} but kv_count is on {like.device}; put all tensors on one device"
        )
    return tensor


def _together(layout: BlockLayout, one: str, other: str) -> None:
    given = [name for name in (one, other) if getattr(layout, name) is not None]
    if len(given) == 1:
        raise ValueError(f"{one} and {other} must be given together, got {given[0]} alone")


def check_shapes(layout: BlockLayout) -> None:
    """Types, devices and shapes: needs no value, so it also runs while tracing."""
    count = _int32("kv_count", layout.kv_count)
    if count.dim() != 3:
        raise ValueError(f"kv_count must be [B|1, H|1, M], got shape {list(count.shape)}")
    rows, cols = layout.num_q_blocks, layout.num_kv_blocks
    if count.shape[2] != rows:
        raise ValueError(
            f"kv_count must have M = ceil(q_len / block_q) = ceil({layout.q_len} / {layout.block_q}) = "
            f"{rows} entries in its last dimension, got shape {list(count.shape)}"
        )
    _check_list_shape("kv", count, layout.kv_index, count, cols)
    _together(layout, "full_count", "full_index")
    if layout.full_count is not None:
        full = _int32("full_count", layout.full_count, count)
        if full.shape != count.shape:
            raise ValueError(
                f"full_count must have kv_count's shape {list(count.shape)}, got {list(full.shape)}"
            )
        _check_list_shape("full", full, layout.full_index, count, cols)
    _together(layout, "partial_slot", "partial_bits")
    if layout.partial_slot is not None:
        slot = _int32("partial_slot", layout.partial_slot, count)
        if slot.shape != layout.kv_index.shape:
            raise ValueError(
                f"partial_slot must have kv_index's shape {list(layout.kv_index.shape)}, "
                f"got {list(slot.shape)}"
            )
        pool = _int32("partial_bits", layout.partial_bits, count)
        want = [layout.block_q, bits.words(layout.block_k)]
        if pool.dim() != 3 or list(pool.shape[1:]) != want:
            raise ValueError(
                f"partial_bits must be [P, block_q, ceil(block_k / 32)] = [P, {want[0]}, {want[1]}], "
                f"got {list(pool.shape)}"
            )


def _check_list_shape(name: str, count: Tensor, index: Tensor | None, like: Tensor, cols: int) -> None:
    index = _int32(f"{name}_index", index, like)
    if index.dim() != 4 or index.shape[:3] != count.shape:
        raise ValueError(
            f"{name}_index must have {name}_count's shape {list(count.shape)} and one more dimension, "
            f"got {list(index.shape)}"
        )
    if index.shape[3] > cols:
        raise ValueError(
            f"{name}_index lists up to {index.shape[3]} blocks a row, but there are only "
            f"ceil(kv_len / block_k) = {cols} key blocks"
        )


def check_values(layout: BlockLayout) -> bool:
    """Counts, indices and slots in range, lists ascending and disjoint. Returns whether a list repeats a
    block.

    All tests are folded into one small tensor first: one device synchronisation when all is well.
    """
    faults = list(_list_faults(layout.kv_count, layout.kv_index, layout.num_kv_blocks))
    if layout.full_count is not None and layout.full_index is not None:
        faults += _list_faults(layout.full_count, layout.full_index, layout.num_kv_blocks)
        faults.append(_overlap(layout).any())
    if layout.partial_slot is not None:
        faults.append(_slot_fault(layout).any())
    found = torch.stack([f.reshape(()) for f in faults]).tolist()
    _raise_list_fault("kv", found[:3], layout.kv_count, layout.kv_index, layout.num_kv_blocks)
    repeats = bool(found[3])
    if layout.full_count is not None and layout.full_index is not None:
        _raise_list_fault("full", found[4:7], layout.full_count, layout.full_index, layout.num_kv_blocks)
        repeats |= bool(found[7])
        if found[8]:
            b, h, i, n = _overlap(layout).nonzero()[0].tolist()
            raise ValueError(
                f"full_index and kv_index must be disjoint, but block {int(layout.kv_index[b, h, i, n])} "
                f"of row [{b}, {h}, {i}] is in both"
            )
    if layout.partial_slot is not None and layout.partial_bits is not None and found[-1]:
        at = _slot_fault(layout).nonzero()[0].tolist()
        raise ValueError(
            f"partial_slot must be -1 (wholly kept) or a slot in [0, {layout.partial_bits.shape[0]}), "
            f"got {int(layout.partial_slot[tuple(at)])} at {at}"
        )
    return repeats


def _used(count: Tensor, index: Tensor) -> Tensor:
    return torch.arange(index.shape[-1], device=index.device) < count.unsqueeze(-1)


def _list_faults(count: Tensor, index: Tensor, cols: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    used = _used(count, index)
    step = used[..., 1:]
    return (
        ((count < 0) | (count > index.shape[-1])).any(),
        (used & ((index < 0) | (index >= cols))).any(),
        (step & (index[..., 1:] < index[..., :-1])).any(),
        (step & (index[..., 1:] == index[..., :-1])).any(),
    )


def _raise_list_fault(name: str, found: list[bool], count: Tensor, index: Tensor, cols: int) -> None:
    if found[0]:
        bad = ((count < 0) | (count > index.shape[-1])).nonzero()[0].tolist()
        raise ValueError(
            f"{name}_count must be in [0, {index.shape[-1]}] (the width of {name}_index), "
            f"got {int(count[tuple(bad)])} at {bad}"
        )
    used = _used(count, index)
    if found[1]:
        bad = (used & ((index < 0) | (index >= cols))).nonzero()[0].tolist()
        raise ValueError(
            f"{name}_index must hold key blocks in [0, {cols}) in its first {name}_count entries, "
            f"got {int(index[tuple(bad)])} at {bad}"
        )
    if found[2]:
        b, h, i, n = (used[..., 1:] & (index[..., 1:] < index[..., :-1])).nonzero()[0].tolist()
        raise ValueError(
            f"{name}_index must be ascending in its first {name}_count entries, got {int(index[b, h, i, n])} "
            f"before {int(index[b, h, i, n + 1])} in row [{b}, {h}, {i}]; sort the rows first"
        )


def _overlap(layout: BlockLayout) -> Tensor:
    """bool like kv_index: entries that full_index lists too."""
    count, full = layout.full_count, layout.full_index
    assert count is not None
    assert full is not None
    if full.shape[-1] == 0 or layout.kv_index.shape[-1] == 0:
        return torch.zeros_like(layout.kv_index, dtype=torch.bool)
    past_all = torch.iinfo(torch.int32).max
    sorted_full = full.masked_fill(~_used(count, full), past_all)
    index = layout.kv_index.contiguous()
    at = torch.searchsorted(sorted_full, index).clamp(max=full.shape[-1] - 1)
    return _used(layout.kv_count, index) & (sorted_full.gather(-1, at) == index)


def _slot_fault(layout: BlockLayout) -> Tensor:
    slot, pool = layout.partial_slot, layout.partial_bits
    assert slot is not None
    assert pool is not None
    wrong = (slot < -1) | (slot >= pool.shape[0])
    return _used(layout.kv_count, layout.kv_index) & wrong
