"""Argument checks that the scan functions share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..capability import dtype_name
from . import arguments as check


def keep_mask(name: str, mask: Any, q: Tensor, tokens: int) -> Tensor | None:
    """A bool ``[B, tokens]`` mask, True = keep."""
    if mask is None:
        return None
    mask = check.is_tensor(name, mask)
    check.same_place(name, mask, q)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool (True = keep), got {dtype_name(mask.dtype)}")
    if mask.dim() != 2 or mask.shape[1] != tokens or mask.shape[0] not in (1, q.shape[0]):
        raise ValueError(
            f"{name} must be [B, tokens] = {[q.shape[0], tokens]}, got shape {check.shape_text(mask)}"
        )
    return mask.expand(q.shape[0], tokens)


def packed(cu_seqlens: Any, q: Tensor, k: Tensor) -> Tensor | None:
    """cu_seqlens of sequences packed along the tokens of q and k alike."""
    if cu_seqlens is None:
        return None
    if q.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens needs a batch size of 1 (sequences are packed along tokens), got {q.shape[0]}"
        )
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            "cu_seqlens packs q and k alike, so they must have the same number of tokens, "
            f"got {q.shape[2]} and {k.shape[2]}"
        )
    return check._cu_seqlens("cu_seqlens", cu_seqlens, "max_seqlen", None, q)


def statistics(q: Tensor) -> torch.dtype:
    """What states and normalisers are kept in."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def state_tensor(name: str, x: Any, shape: tuple[int, ...], layout: str, q: Tensor) -> Tensor:
    x = check.is_tensor(name, x)
    check.same_place(name, x, q)
    if x.dtype != statistics(q):
        raise TypeError(f"{name} must be {dtype_name(statistics(q))}, got {dtype_name(x.dtype)}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must be {layout} = {list(shape)}, got shape {check.shape_text(x)}")
    return x.contiguous()
