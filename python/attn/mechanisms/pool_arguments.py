"""Argument checks that the pool functions share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..capability import dtype_name, require_backend
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
    same_device(name, x, like, like_name)
    if x.dtype != like.dtype:
        raise ValueError(
            f"{name} must have the dtype of {like_name}, {dtype_name(like.dtype)}, got {dtype_name(x.dtype)}"
        )
    if x.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {like_name}, {check.shape_text(like)}, got {check.shape_text(x)}"
        )
    return check.last_contiguous(x)


def same_device(name: str, x: Tensor, like: Tensor, like_name: str) -> None:
    if x.device != like.device:
        raise ValueError(
            f"{name} is on {x.device} but {like_name} is on {like.device}; put all tensors on one device"
        )


def mask(
    name: str, x: Any, like: Tensor, like_name: str, shape: tuple[int, ...], layout: str
) -> Tensor | None:
    """A bool tensor of that shape, or None."""
    if x is None:
        return None
    x = check.is_tensor(name, x)
    same_device(name, x, like, like_name)
    if x.dtype != torch.bool:
        raise TypeError(f"{name} must be bool (True = keep), got {dtype_name(x.dtype)}; convert with .bool()")
    if x.shape != shape:
        raise ValueError(f"{name} must be {layout} = {list(shape)}, got shape {check.shape_text(x)}")
    return x


def token_ids(x: Any, like: Tensor, like_name: str) -> Tensor | None:
    """Segment ids ``[B, L]``, or None; their values are checked by the op."""
    if x is None:
        return None
    x = check.is_tensor("segment_ids", x)
    same_device("segment_ids", x, like, like_name)
    if x.dtype != torch.int32:
        raise TypeError(f"segment_ids must be int32, got {dtype_name(x.dtype)}; convert with .int()")
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
    x = check.is_tensor("cu_seqlens", x)
    same_device("cu_seqlens", x, like, like_name)
    if x.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {dtype_name(x.dtype)}; convert with .int()")
    if x.dim() != 1 or x.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be [S + 1], got shape {check.shape_text(x)}")
    if batch != 1:
        raise ValueError(
            f"cu_seqlens needs a batch size of 1 (sequences are packed along tokens), got {batch}"
        )
    if check.values_are_known(x):
        values = x.tolist()
        if values[0] != 0:
            raise ValueError(f"cu_seqlens must start at 0, got {values[0]}")
        if values != sorted(values):
            i, j = next((i, j) for i, j in pairwise(values) if j < i)
            raise ValueError(f"cu_seqlens must not decrease, got {i} before {j}")
        if values[-1] > length:
            raise ValueError(f"cu_seqlens must not exceed the number of tokens, {length}, got {values[-1]}")
    return x.contiguous()


def odd_window(x: Any) -> int:
    x = check.integer("window", x, 1)
    if x % 2 == 0:
        raise ValueError(f"window must be odd (it is centred on each token), got {x}")
    return x
