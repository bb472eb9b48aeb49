"""Argument checks that the scan functions share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..capability import dtype_name, statistics_dtype
from . import arguments as check


def keep_mask(name: str, mask: Any, q: Tensor, tokens: int) -> Tensor | None:
    """A bool ``[B, tokens]`` mask, True = keep."""
    if mask is None:
        return None
    mask = check.keep_mask(name, mask, q)
    if mask.dim() != 2 or mask.shape[1] != tokens or mask.shape[0] not in (1, q.shape[0]):
        raise ValueError(
            f"{name} must be [B, tokens] = {[q.shape[0], tokens]}, got shape {check.shape_text(mask)}"
        )
    return mask.expand(q.shape[0], tokens)


def packed(cu_seqlens: Any, q: Tensor, k: Tensor) -> Tensor | None:
    """cu_seqlens of sequences packed along the tokens of q and k alike."""
    if cu_seqlens is None:
        return None
    check.one_batch("cu_seqlens", q.shape[0])
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            "cu_seqlens packs q and k alike, so they must have the same number of tokens, "
            f"got {q.shape[2]} and {k.shape[2]}"
        )
    return check.bounds("cu_seqlens", cu_seqlens, q, "q", q.shape[2])


def epsilon(eps: Any) -> float:
    if check.finite("eps", eps) < 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    return float(eps)


def state_tensor(name: str, x: Any, shape: tuple[int, ...], layout: str, q: Tensor) -> Tensor:
    x = check.is_tensor(name, x)
    check.same_place(name, x, q)
    if x.dtype != statistics_dtype(q):
        raise TypeError(
            f"{name} must be {dtype_name(statistics_dtype(q))} for {dtype_name(q.dtype)} inputs, "
            f"got {dtype_name(x.dtype)}"
        )
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must be {layout} = {list(shape)}, got shape {check.shape_text(x)}")
    return x.contiguous()
