"""Fake implementations of the attend family: see `_fake.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def in_order_of(like: Tensor, features: Any) -> Tensor:
    """``[B, H, T, features]`` that lies in memory as ``[B, T, H, features]`` if `like` holds tokens before
    heads."""
    batch, heads, tokens, _ = like.shape
    if like.stride(2) > like.stride(1):
        return like.new_empty((batch, tokens, heads, features)).transpose(1, 2)
    return like.new_empty((batch, heads, tokens, features))


def results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return in_order_of(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=statistics)


def gradients(q: Tensor, k: Tensor, v: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    """Of q, k, v, key_log_weight, sink_logits and head_gate: as many as `wanted` has entries."""
    made = (
        lambda: in_order_of(q, q.shape[3]),
        lambda: in_order_of(k, k.shape[3]),
        lambda: in_order_of(v, v.shape[3]),
        lambda: q.new_empty(k.shape[:3], dtype=torch.float32),
        lambda: q.new_empty(q.shape[1:2], dtype=torch.float32),
        lambda: q.new_empty(q.shape[:3], dtype=torch.float32),
    )
    wanted = [*wanted, *[False] * (len(made) - len(wanted))]
    dtypes = (q.dtype,) * 3 + (torch.float32,) * 3
    return tuple(
        make() if want else q.new_empty((0,), dtype=dtype)
        for make, want, dtype in zip(made, wanted, dtypes, strict=True)
    )


@torch.library.register_fake("attn::attend_forward")
def _attend_forward(q: Tensor, k: Tensor, v: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Tensor]:
    return results(q, v)


@torch.library.register_fake("attn::attend_backward")
def _attend_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    wanted: list[bool],
    *options: Any,
    **named: Any,
) -> tuple[Tensor, ...]:
    return gradients(q, k, v, wanted)
