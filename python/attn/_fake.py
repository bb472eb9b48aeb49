"""Fake implementations: shapes, dtypes and exact strides of every op's results, for torch.compile, export and
meta tensors. Each family of ops has a module; this is what they share.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def in_order_of(like: Tensor, features: Any) -> Tensor:
    """``[B, H, T, features]`` that lies in memory as ``[B, T, H, features]`` if `like` holds tokens before
    heads."""
    batch, heads, tokens, _ = like.shape
    if like.stride(2) > like.stride(1):
        return like.new_empty((batch, tokens, heads, features)).transpose(1, 2)
    return like.new_empty((batch, heads, tokens, features))


def sequences(x: Tensor, cu_seqlens: Tensor | None) -> Any:
    """How many a batch, or a packed one, holds."""
    return x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
