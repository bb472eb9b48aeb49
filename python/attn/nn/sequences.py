"""What the pooling layers share about padded and packed batches."""

from __future__ import annotations

import torch
from torch import Tensor


def is_token(x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """bool, True where ``x`` ``[B, L, C]`` or packed ``[N, C]`` holds a token; None: everywhere."""
    if cu_seqlens is None:
        return mask
    inside = torch.arange(x.shape[-2], device=x.device) < cu_seqlens[-1]
    inside = inside.expand(x.shape[:-1])
    return inside if mask is None else inside & mask.reshape(x.shape[:-1])


def without_padding(x: Tensor, kept: Tensor | None) -> Tensor:
    """x with 0 where there is no token: a projection's gradient multiplies what stands there by 0, and 0
    times a NaN is NaN.
    """
    return x if kept is None else x.masked_fill(~kept[..., None], 0.0)


def of_sequences(values: Tensor, x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Values ``[S, C]`` of sequences, for every token: ``[B, 1, C]``, packed ``[N, C]`` or ``[1, N, C]``."""
    if cu_seqlens is None:
        return values[:, None]
    token = torch.arange(x.shape[-2], device=x.device, dtype=cu_seqlens.dtype)
    number = torch.bucketize(token, cu_seqlens[1:], right=True).clamp(max=max(values.shape[0] - 1, 0))
    spread = values[number] if values.shape[0] else values.new_zeros(x.shape[-2], values.shape[1])
    return spread.expand(*x.shape[:-1], -1)


def check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim, {dim}, got {num_heads}")
