"""Fake implementations of the scan family: see `_fake.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._fake import in_order_of, sequences
from .capability import statistics_dtype
from .mechanisms.linear import feature_count


def _state_shapes(k: Tensor, v: Tensor, feature_map: str, cu_seqlens: Tensor | None) -> tuple[Any, Any]:
    z = (sequences(k, cu_seqlens), k.shape[1], feature_count(feature_map, k.shape[3]))
    return (*z, v.shape[3]), z


@torch.library.register_fake("attn::linear_forward")
def _linear_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    feature_map: str = "elu1",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_s: Tensor | None = None,
    initial_z: Tensor | None = None,
    keep_state: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = statistics_dtype(q)
    s, z = _state_shapes(k, v, feature_map, cu_seqlens)
    if causal and not keep_state:
        s = z = (0,)
    mass = q.shape[:3] if normalize else (0,)
    return (
        in_order_of(q, v.shape[3]),
        q.new_empty(mass, dtype=dtype),
        q.new_empty(s, dtype=dtype),
        q.new_empty(z, dtype=dtype),
    )


@torch.library.register_fake("attn::linear_backward")
def _linear_backward(
    dout: Tensor,
    ds: Tensor | None,
    dz: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    mass: Tensor,
    s: Tensor | None,
    z: Tensor | None,
    feature_map: str = "elu1",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_s: Tensor | None = None,
    initial_z: Tensor | None = None,
) -> tuple[Tensor, ...]:
    shapes = ((0,), (0,)) if initial_s is None else _state_shapes(k, v, feature_map, cu_seqlens)
    return (
        in_order_of(q, q.shape[3]),
        in_order_of(k, k.shape[3]),
        in_order_of(v, v.shape[3]),
        *(q.new_empty(shape, dtype=statistics_dtype(q)) for shape in shapes),
    )


def _flow_statistics(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, dtype = q.shape[0], q.shape[1], statistics_dtype(q)
    return (
        q.new_empty((batch, heads, 2, q.shape[2]), dtype=dtype),
        q.new_empty((batch, heads, 3, k.shape[2]), dtype=dtype),
    )


def _flow_state(q: Tensor, v: Tensor, sequences: Any) -> tuple[Tensor, ...]:
    heads, dim, dtype = q.shape[1], q.shape[3], statistics_dtype(q)
    return (
        q.new_empty((sequences, heads, 4, dim), dtype=dtype),
        q.new_empty((sequences, heads, dim, v.shape[3]), dtype=dtype),
        q.new_empty((sequences, heads), dtype=dtype),
        q.new_empty((sequences,), dtype=dtype),
    )


@torch.library.register_fake("attn::flow_forward")
def _flow_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float = 1e-6,
    eps_outside: bool = False,
    clamp: float | None = 1.0,
    competition: str = "source",
    source_norm: bool = False,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, ...]:
    state = _flow_state(q, v, sequences(q, cu_seqlens))
    return in_order_of(q, v.shape[3]), *_flow_statistics(q, k), *state[:2]


@torch.library.register_fake("attn::flow_causal_forward")
def _flow_causal_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float = 1e-6,
    eps_outside: bool = False,
    clamp: float | None = 1.0,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    keep_state: bool = False,
) -> tuple[Tensor, ...]:
    if keep_state:
        state = _flow_state(q, v, sequences(q, cu_seqlens))
    else:
        state = tuple(q.new_empty((0,), dtype=statistics_dtype(q)) for _ in range(4))
    return in_order_of(q, v.shape[3]), *_flow_statistics(q, k), *state


@torch.library.register_fake("attn::flow_step")
def _flow_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor | None = None,
    product: Tensor | None = None,
    log_mean: Tensor | None = None,
    tokens: Tensor | None = None,
    eps: float = 1e-6,
    clamp: float | None = 1.0,
) -> tuple[Tensor, ...]:
    return in_order_of(q, v.shape[3]), *_flow_state(q, v, q.shape[0])


def _qkv_gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any, **named: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return in_order_of(q, q.shape[3]), in_order_of(k, k.shape[3]), in_order_of(v, v.shape[3])


torch.library.register_fake("attn::flow_backward")(_qkv_gradients)
torch.library.register_fake("attn::flow_causal_backward")(_qkv_gradients)


@torch.library.register_fake("attn::prefix_pool_forward")
def _prefix_pool_forward(score: Tensor, v: Tensor, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    lse = score.new_empty(score.shape, dtype=statistics_dtype(v))
    if score.shape[1] == v.shape[1]:
        return in_order_of(v, v.shape[3]), lse
    return v.new_empty((*score.shape, v.shape[3])), lse


@torch.library.register_fake("attn::prefix_pool_backward")
def _prefix_pool_backward(
    dout: Tensor,
    dlse: Tensor | None,
    score: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return score.new_empty(score.shape), in_order_of(v, v.shape[3])
