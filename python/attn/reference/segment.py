"""Segment pooling in float64, one segment at a time."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def maximum(rows: Tensor, tie: str) -> Tensor:
    """Maximum over the first dimension, ``[n, C] -> [C]``, n >= 1.

    The gradient goes to the first of equal maxima (``tie="first"``) or is divided among them (``"even"``).
    """
    winners = rows == rows.max(0, keepdim=True).values
    if tie == "first":
        return rows.gather(0, winners.int().argmax(0, keepdim=True))[0]
    return torch.where(winners, rows, 0.0).sum(0) / winners.sum(0)


def reduce_rows(rows: Tensor, reduce: str, tie: str) -> Tensor:
    """``[n, C] -> [C]``; 0 where there is no row."""
    if len(rows) == 0:
        return rows.new_zeros(rows.shape[1:])
    if reduce == "max":
        return maximum(rows, tie)
    if reduce == "mean":
        return rows.sum(0) / len(rows)
    return {"sum": rows.sum(0), "first": rows[0], "last": rows[-1]}[reduce]


def segment_pool(
    x: Tensor,
    *,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reduce: str = "max",
    tie: str = "first",
    mask: Tensor | None = None,
    num_segments: int | None = None,
) -> Tensor:
    """Oracle of :func:`attn.segment_pool`: ``out_s = reduce { x_l : segment(l) = s, l kept }``."""
    x = x.to(torch.float64)
    keep = torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask
    if cu_seqlens is not None:
        packed, keep = x.reshape(-1, x.shape[-1]), keep.reshape(-1)
        pooled = [reduce_rows(packed[i:j][keep[i:j]], reduce, tie) for i, j in pairwise(cu_seqlens.tolist())]
        return torch.stack(pooled) if pooled else packed.new_zeros(0, x.shape[-1])
    if segment_ids is None:
        segment_ids, num_segments = torch.zeros(x.shape[:-1], dtype=torch.int32), 1
    if num_segments is None:
        num_segments = int(segment_ids.max()) + 1 if segment_ids.numel() else 0
    out = [
        [reduce_rows(row[(ids == s) & kept], reduce, tie) for s in range(num_segments)]
        for row, ids, kept in zip(x, segment_ids, keep, strict=True)
    ]
    if x.shape[0] == 0 or num_segments == 0:
        return x.new_zeros(x.shape[0], num_segments, x.shape[-1])
    return torch.stack([torch.stack(rows) for rows in out])
