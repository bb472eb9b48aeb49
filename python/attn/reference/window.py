"""Pooling over a sliding window in float64, one row at a time."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .segment import maximum


def window_rows(length: int, window: int, dilation: int, row: int) -> list[int]:
    """Rows of a sequence that the window around ``row`` covers, ascending."""
    half = window // 2
    taps = (row + dilation * offset for offset in range(-half, half + 1))
    return [i for i in taps if 0 <= i < length]


def window_pool(
    x: Tensor,
    *,
    window: int,
    reduce: str = "max",
    dilation: int = 1,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    count_include_pad: bool = False,
) -> Tensor:
    """Oracle of :func:`attn.window_pool`.

    ``out_l = reduce { x_j : j in l + dilation * (-w//2 .. w//2), same sequence, kept }``, 0 for rows not
    kept.
    """
    x = x.to(torch.float64)
    keep = torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask
    bounds = (0, x.shape[-2]) if cu_seqlens is None else tuple(cu_seqlens.tolist())

    def pool(rows: Tensor, kept: Tensor, row: int) -> Tensor:
        taps = [i for i in window_rows(len(rows), window, dilation, row) if kept[i]]
        if not kept[row]:
            return rows.new_zeros(rows.shape[-1])
        if reduce == "max":
            return maximum(rows[taps], "first")
        return rows[taps].sum(0) / (window if count_include_pad else len(taps))

    flat, kept = x.reshape(-1, *x.shape[-2:]), keep.reshape(-1, x.shape[-2])
    out = torch.zeros_like(flat)
    for b in range(len(flat)):
        for i, j in pairwise(bounds):
            for l in range(j - i):
                out[b, i + l] = pool(flat[b, i:j], kept[b, i:j], l)
    return out.reshape(x.shape)
