"""Pooling of keys and values by a few queries, in float64 from the explicit weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def query_pool(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    key_mask: Tensor | None = None,
    activation: str = "softmax",
    axis: str = "keys",
) -> Tensor:
    """Oracle of :func:`attn.query_pool`: ``out = A v`` with ``x = scale q k^T`` over the kept keys and

    - ``A = softmax(x)`` over keys or over queries,
    - ``A = relu(x) / n`` for n kept keys.
    """
    q, k, v = (x.to(torch.float64) for x in (q, k, v))
    one_head = k.dim() < 4
    if one_head:  # [B, L, C] or, packed, [N, C]
        q = q[(None,) * (3 - q.dim())].unsqueeze(1)
        k, v = (x[(None,) * (3 - x.dim())].unsqueeze(1) for x in (k, v))
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if cu_seqlens is None:
        spans = [(b, 0, k.shape[2]) for b in range(k.shape[0])]
    else:
        spans = [(0, i, j) for i, j in pairwise(cu_seqlens.tolist())]
    keep = (
        torch.ones(k.shape[0], k.shape[2], dtype=torch.bool)
        if key_mask is None
        else key_mask.view(k.shape[0], -1)
    )
    out = torch.zeros(len(spans), heads, q.shape[2], v.shape[-1], dtype=torch.float64)
    for n, (b, i, j) in enumerate(spans):
        index = i + keep[b, i:j].nonzero()[:, 0]
        if len(index) == 0:
            continue
        keys, values = (x[b, :, index].repeat_interleave(group, 0) for x in (k, v))
        out[n] = pooling_weights(scale * q[n if q.shape[0] > 1 else 0] @ keys.mT, activation, axis) @ values
    return out[:, 0] if one_head else out


def pooling_weights(logits: Tensor, activation: str, axis: str) -> Tensor:
    """``[H, M, L] -> [H, M, L]``"""
    if activation == "relu_mean":
        return logits.relu() / logits.shape[-1]
    return logits.softmax(-1 if axis == "keys" else -2)
