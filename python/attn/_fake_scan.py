"""Fake implementations of the scan family: see `_fake.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._fake_attend import in_order_of


def _statistics(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _feature_count(feature_map: str, dim: Any) -> Any:
    return 1 + dim + dim * (dim + 1) // 2 if feature_map == "taylor2" else dim


def _state_shapes(k: Tensor, v: Tensor, feature_map: str, cu_seqlens: Tensor | None) -> tuple[Any, Any]:
    sequences = k.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    z = (sequences, k.shape[1], _feature_count(feature_map, k.shape[3]))
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
    dtype = _statistics(q)
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
    out: Tensor,
    mass: Tensor,
    s: Tensor,
    z: Tensor,
    feature_map: str = "elu1",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_s: Tensor | None = None,
    initial_z: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = ((0,), (0,)) if initial_s is None else _state_shapes(k, v, feature_map, cu_seqlens)
    return (
        in_order_of(q, q.shape[3]),
        in_order_of(k, k.shape[3]),
        in_order_of(v, v.shape[3]),
        *(q.new_empty(shape, dtype=_statistics(q)) for shape in shapes),
    )
