"""Fake implementations of the attend family: see `_fake.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._fake import in_order_of
from .capability import statistics_dtype


def results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return in_order_of(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=statistics_dtype(q))


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


def _forward(q: Tensor, k: Tensor, v: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Tensor]:
    return results(q, v)


def _backward(number: int) -> Callable[..., tuple[Tensor, ...]]:
    def fake(
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
        return gradients(q, k, v, wanted)[:number]

    return fake


for _name in ("attend_forward", "block_sparse_forward", "s2_forward", "hip_attend", "decode_forward"):
    torch.library.register_fake(f"attn::{_name}")(_forward)
for _name, _number in (
    ("attend_backward", 6),
    ("block_sparse_backward", 6),
    ("s2_backward", 3),
    ("hip_backward", 3),
):
    torch.library.register_fake(f"attn::{_name}")(_backward(_number))


@torch.library.register_fake("attn::hip_select")
def _hip_select(
    q: Tensor,
    k: Tensor,
    mask_k: int = 512,
    block_size_q: int = 64,
    block_size_k: int = 2,
    block_stride_q: int = 2,
    sliding_window: int = 256,
    representative: str = "center",
    reduce_heads: str = "none",
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    lists = {"none": q.shape[1], "group": k.shape[1], "all": 1}[reduce_heads]
    shape = (q.shape[0], lists, -(-q.shape[2] // block_size_q))
    index = q.new_empty((*shape, -(-mask_k // block_size_k)), dtype=torch.int32)
    return index, q.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("attn::hip_forward")
def _hip_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_k: int = 512,
    block_size_q: int = 64,
    block_size_k: int = 2,
    block_stride_q: int = 2,
    sliding_window: int = 256,
    sink_tokens: int = 16,
    representative: str = "center",
    reduce_heads: str = "none",
    causal: bool = True,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = (mask_k, block_size_q, block_size_k, block_stride_q, sliding_window)
    return (*results(q, v), *_hip_select(q, k, *sizes, representative, reduce_heads, causal))


@torch.library.register_fake("attn::merge_states")
def _merge_states(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    return outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])


@torch.library.register_fake("attn::merge_states_backward")
def _merge_states_backward(
    dout: Tensor, dlse: Tensor | None, outs: Tensor, lses: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    return outs.new_empty(outs.shape), lses.new_empty(lses.shape)
