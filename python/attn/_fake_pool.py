"""Fake implementations of the pool family: see `_fake.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from ._fake import in_order_of, sequences
from .capability import statistics_dtype


def _if(wanted: bool, like: Tensor) -> Tensor:
    return like.new_empty(like.shape if wanted else (0,))


@torch.library.register_fake("attn::axis_gate_forward")
def _axis_gate_forward(x: Tensor, channel: Tensor, time: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("attn::axis_gate_backward")
def _axis_gate_backward(
    dout: Tensor, x: Tensor, channel: Tensor, time: Tensor, wanted: list[bool]
) -> tuple[Tensor, ...]:
    return tuple(_if(w, like) for w, like in zip(wanted, (x, channel, time), strict=True))


@torch.library.register_fake("attn::ponet_forward")
def _ponet_forward(
    q: Tensor | None,
    k: Tensor,
    o: Tensor,
    segment: Tensor,
    local: Tensor,
    pooled_query: Tensor | None,
    num_heads: int,
    segment_ids: Tensor | None = None,
    segment_length: int = 0,
    window: int = 3,
    mask: Tensor | None = None,
    special_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, dtype = sequences(k, cu_seqlens), statistics_dtype(k)
    query, aggregate = (k.new_empty((count, k.shape[2]), dtype=dtype) for _ in range(2))
    return k.new_empty(k.shape), query, aggregate, k.new_empty((count, num_heads), dtype=dtype)


@torch.library.register_fake("attn::ponet_backward")
def _ponet_backward(
    dout: Tensor,
    k: Tensor,
    o: Tensor,
    segment: Tensor,
    local: Tensor,
    query: Tensor,
    aggregate: Tensor,
    lse: Tensor,
    wanted: list[bool],
    num_heads: int,
    segment_ids: Tensor | None = None,
    segment_length: int = 0,
    window: int = 3,
    mask: Tensor | None = None,
    special_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    tie: str = "first",
) -> tuple[Tensor, ...]:
    return tuple(_if(w, like) for w, like in zip(wanted, (k, k, o, segment, local, query), strict=True))


@torch.library.register_fake("attn::query_pool_forward")
def _query_pool_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    key_mask: Tensor | None = None,
    activation: str = "softmax",
    axis: str = "keys",
) -> tuple[Tensor, Tensor]:
    rows = (sequences(k, cu_seqlens), *q.shape[1:3])
    has_lse = activation == "softmax" and axis == "keys"
    lse = q.new_empty(rows if has_lse else (0,), dtype=statistics_dtype(q))
    return q.new_empty((*rows, v.shape[3])), lse


@torch.library.register_fake("attn::query_pool_backward")
def _query_pool_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    lse: Tensor,
    wanted: list[bool],
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    key_mask: Tensor | None = None,
    activation: str = "softmax",
    axis: str = "keys",
) -> tuple[Tensor, Tensor, Tensor]:
    dk, dv = (
        in_order_of(x, x.shape[3]) if w else x.new_empty((0,))
        for w, x in zip(wanted[1:], (k, v), strict=True)
    )
    return _if(wanted[0], q), dk, dv


@torch.library.register_fake("attn::segment_max_forward")
def _segment_max_forward(
    x: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    num_segments: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    out = _segment_pool_forward(x, segment_ids, cu_seqlens, num_segments)
    return out, out.new_empty(out.shape, dtype=torch.int32)


@torch.library.register_fake("attn::segment_pool_forward")
def _segment_pool_forward(
    x: Tensor,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    num_segments: int,
    reduce: str = "max",
    mask: Tensor | None = None,
) -> Tensor:
    if cu_seqlens is not None:
        return x.new_empty((cu_seqlens.shape[0] - 1, x.shape[1]))
    return x.new_empty((x.shape[0], 1 if segment_ids is None else num_segments, x.shape[2]))


@torch.library.register_fake("attn::segment_pool_backward")
def _segment_pool_backward(
    dout: Tensor,
    x: Tensor | None,
    segment_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    num_segments: int,
    reduce: str = "max",
    mask: Tensor | None = None,
    tie: str = "first",
    token: Tensor | None = None,
    tokens: int = -1,
) -> Tensor:
    length = tokens if x is None else x.shape[-2]
    return dout.new_empty((*dout.shape[:-2], length, dout.shape[-1]))


@torch.library.register_fake("attn::tap_pool_forward")
def _tap_pool_forward(x: Tensor, weights: Tensor, height: int, width: int, dilations: list[int]) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("attn::tap_pool_backward")
def _tap_pool_backward(
    dout: Tensor,
    x: Tensor,
    weights: Tensor,
    wanted: list[bool],
    height: int,
    width: int,
    dilations: list[int],
) -> tuple[Tensor, ...]:
    return tuple(_if(w, like) for w, like in zip(wanted, (x, weights), strict=True))


@torch.library.register_fake("attn::topk_nodes")
def _topk_nodes(
    score: Tensor,
    cu_seqlens: Tensor,
    ratio: float | None = None,
    k: int | None = None,
    min_score: float | None = None,
) -> tuple[Tensor, Tensor]:
    return score.new_empty(score.shape, dtype=torch.int64), cu_seqlens.new_empty(cu_seqlens.shape)


@torch.library.register_fake("attn::window_pool_forward")
def _window_pool_forward(
    x: Tensor,
    window: int,
    reduce: str = "max",
    dilation: int = 1,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    count_include_pad: bool = False,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("attn::window_pool_backward")
def _window_pool_backward(
    dout: Tensor,
    x: Tensor | None,
    window: int,
    reduce: str = "max",
    dilation: int = 1,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    count_include_pad: bool = False,
) -> Tensor:
    return dout.new_empty(dout.shape)
