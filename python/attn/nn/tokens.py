"""Text embeddings from token embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..mechanisms.segment_pool import segment_pool
from .sequences import is_token

MODES = ("mean", "max", "first", "last", "weighted_mean")


class TokenPooling(nn.Module):
    """One embedding per sequence: ``mean``, ``max``, ``first`` (CLS), ``last`` (end of sequence) or
    ``weighted_mean`` (weight t for token t, counted from 1) of its tokens.

    Padding may lie on either side: the last token is the last one the mask keeps, and positions count kept
    tokens only. No padded token is read, and a packed batch needs no padding at all.

    Args:
        mode: one of the above.
        normalize: scale embeddings to length 1.
    """

    def __init__(self, mode: str = "mean", *, normalize: bool = False) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.mode, self.normalize = mode, normalize

    def forward(self, x: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """x ``[B, L, C]`` with mask bool ``[B, L]`` (True = token) or packed ``[N, C]`` with cu_seqlens int32
        ``[S + 1]`` -> ``[B, C]`` or ``[S, C]``; sequences without tokens give 0.
        """
        if self.mode == "weighted_mean":
            pooled = self._weighted(x, mask, cu_seqlens)
        else:
            pooled = segment_pool(x, reduce=self.mode, mask=mask, cu_seqlens=cu_seqlens)
        pooled = pooled if cu_seqlens is not None else pooled.squeeze(1)
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def _weighted(self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        kept = is_token(x, mask, cu_seqlens)
        if kept is None:
            kept = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        position = kept.to(exact).cumsum(-1)
        if cu_seqlens is not None:  # counted from the start of each sequence
            flat = nn.functional.pad(position.flatten(), (1, 0))
            token = torch.arange(x.shape[-2], device=x.device, dtype=cu_seqlens.dtype)
            number = torch.bucketize(token, cu_seqlens[1:], right=True).clamp(max=max(len(cu_seqlens) - 2, 0))
            position = position - flat[cu_seqlens.long()[number]].view_as(position)
        weight = torch.where(kept, position, 0.0)[..., None]
        total, weights = (
            segment_pool(y, reduce="sum", mask=mask, cu_seqlens=cu_seqlens)
            for y in (x.to(exact) * weight, weight)
        )
        return (total / weights.clamp(min=1.0)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.mode!r}, normalize={self.normalize}"
