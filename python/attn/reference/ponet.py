"""PoNet's token mixing in float64, one sequence at a time (arXiv 2110.02442)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .segment import maximum
from .window import window_rows


def ponet_mix(
    q: Tensor | None,
    k: Tensor,
    o: Tensor,
    segment: Tensor,
    local: Tensor,
    *,
    num_heads: int,
    segment_ids: Tensor | None = None,
    segment_length: int | None = None,
    window: int = 3,
    mask: Tensor | None = None,
    special_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    pooled_query: Tensor | None = None,
    tie: str = "first",
) -> Tensor:
    """Oracle of :func:`attn.ponet_mix`."""
    batch, length, channels = k.shape
    keep = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask
    special = torch.zeros_like(keep) if special_mask is None else special_mask
    if segment_ids is None:
        segment_ids = torch.zeros(batch, length, dtype=torch.int32)
    spans = [(b, 0, length) for b in range(batch)]
    if cu_seqlens is not None:
        spans = [(0, i, j) for i, j in pairwise(cu_seqlens.tolist())]
    out = torch.zeros(batch, length, channels, dtype=torch.float64)
    for n, (b, i, j) in enumerate(spans):
        index = i + keep[b, i:j].nonzero()[:, 0]  # tokens that take part
        if len(index) == 0:
            continue
        position = (index - i).tolist()
        rows = {name: x[b, index].double() for name, x in (("k", k), ("o", o), ("s", segment), ("l", local))}
        if pooled_query is not None:
            g = pooled_query[n].double()
        else:
            assert q is not None
            g = q[b, index].double().mean(0)
        keys = rows["k"].unflatten(-1, (num_heads, -1))
        pooled = global_aggregate(g.view(num_heads, -1), keys).flatten()
        ids = segment_ids[b, index]
        if segment_length is not None:
            ids = torch.tensor(position) // segment_length
        mixed = []
        for row, p in enumerate(position):
            if special[b, i + p]:
                mixed.append(pooled * rows["o"][row])
                continue
            in_segment = maximum(rows["s"][ids == ids[row]], tie)
            taps = [position.index(t) for t in window_rows(j - i, window, 1, p) if t in position]
            taps = [t for t in taps if not special[b, index[t]]]
            mixed.append((pooled + in_segment) * rows["o"][row] + maximum(rows["l"][taps], "first"))
        out[b, index] = torch.stack(mixed)
    return out


def global_aggregate(query: Tensor, keys: Tensor) -> Tensor:
    """One query a head over keys that are their own values: ``[H, D], [n, H, D] -> [H, D]``."""
    weights = torch.einsum("hd,nhd->hn", query, keys).div(keys.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("hn,nhd->hd", weights, keys)
