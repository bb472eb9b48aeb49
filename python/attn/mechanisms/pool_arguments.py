"""Argument checks that the pool functions share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..capability import require_backend
from . import arguments as check

TIES = ("first", "even")


def tokens(op: str, name: str, x: Any, layout: str = "[B, L, C]", dims: int = 3) -> Tensor:
    """A ``[B, L, C]`` tensor (``[N, C]`` with ``dims`` of 2), with a contiguous last dimension."""
    x = check.is_tensor(name, x)
    if x.dim() != dims:
        raise ValueError(f"{name} must be {layout}, got shape {check.shape_text(x)}")
    (x,) = check.autocast(x)
    require_backend(op, x)
    return check.last_contiguous(x)


def tokens_like(name: str, x: Any, like: Tensor, like_name: str) -> Tensor:
    """A further tensor with the shape, dtype and device of ``like``."""
    (x,) = check.autocast(check.is_tensor(name, x))
    check.same_place(name, x, like, like_name)
    check.same_dtype(name, x, like, like_name)
    if x.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name}, {check.shape_text(like)}, got {check.shape_text(x)}"
        )
    return check.last_contiguous(x)


def mask(
    name: str, x: Any, like: Tensor, like_name: str, shape: tuple[int, ...], layout: str
) -> Tensor | None:
    """A bool tensor of that shape, or None."""
    if x is None:
        return None
    x = check.keep_mask(name, x, like, like_name)
    if x.shape != shape:
        raise ValueError(f"{name} must be {layout} = {list(shape)}, got shape {check.shape_text(x)}")
    return x


def token_ids(x: Any, like: Tensor, like_name: str) -> Tensor | None:
    """Segment ids ``[B, L]``, or None; their values are checked by the op."""
    if x is None:
        return None
    x = check.int32("segment_ids", x, like, like_name)
    shape = like.shape[:2]
    if x.shape != shape:
        raise ValueError(f"segment_ids must be [B, L] = {list(shape)}, got shape {check.shape_text(x)}")
    if check.values_are_known(x) and x.numel() and int(x.min()) < 0:
        raise ValueError(f"segment_ids must be >= 0, got {int(x.min())}")
    return x


def packed(x: Any, like: Tensor, like_name: str, batch: int, length: int) -> Tensor | None:
    """cu_seqlens ``[S + 1]`` of sequences packed along ``length`` tokens, or None."""
    if x is None:
        return None
    x = check.bounds("cu_seqlens", x, like, like_name, length)
    check.one_batch("cu_seqlens", batch)
    return x


def odd_window(x: Any) -> int:
    x = check.integer("window", x, 1)
    if x % 2 == 0:
        raise ValueError(f"window must be odd (it is centred on each token), got {x}")
    return x
