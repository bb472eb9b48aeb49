"""Trainable poolers of language models used for embeddings: latents that attend to tokens or to layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.query_pool import query_pool
from .sequences import is_token, without_padding


class LatentPooling(nn.Module):
    """A sequence's embedding as the mean of r learned latents that attend to its tokens.

    Cross attention and a GEGLU layer, each with a residual, then the mean over latents and length 1.
    Parameters are named as in the released trainable poolers (``latents``, ``cross_attend_blocks.0.fn.to_q``
    ...), but padded tokens take no part (released: they do).

    With few keys the output projection is applied to the values of the keys instead of to the results of the
    latents (:meth:`reassociates`): for 768 latents, 32 keys and 32 heads of 2048 that is 17 times less work.

    Args:
        dim: features of a token and of the result.
        num_latents: r.
        num_heads, head_dim: of the attention; their product need not be dim.
        mult: width of the feed-forward layer over dim.
        normalize: scale embeddings to length 1.
        device, dtype: of the parameters.

    Reference: Tang & Yang, Pooling and Attention: What are Effective Designs for LLM-Based Embedding Models?
    (arXiv 2409.02727).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_latents: int,
        num_heads: int,
        head_dim: int,
        mult: int = 4,
        normalize: bool = True,
        **place: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.normalize = num_heads, head_dim, normalize
        self.latents = nn.Parameter(torch.randn(num_latents, dim, **place))
        attention = _CrossAttention(dim, num_heads * head_dim, place)
        self.cross_attend_blocks = nn.ModuleList(
            [
                _PreNorm(dim, attention, place, context=True),
                _PreNorm(dim, _FeedForward(dim, mult, place), place),
            ]
        )

    def forward(self, x: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """x ``[B, L, dim]`` with mask bool ``[B, L]`` (True = keep) or packed ``[N, dim]`` with cu_seqlens
        int32 ``[S + 1]`` -> ``[B, dim]`` or ``[S, dim]``.
        """
        x = without_padding(x, is_token(x, mask, cu_seqlens))
        blocks: Any = self.cross_attend_blocks
        cross, feed = blocks
        q = (
            cross.fn.to_q(cross.norm_context(self.latents))
            .unflatten(-1, (self.num_heads, -1))
            .transpose(0, 1)
        )
        k, v = (self._heads(y) for y in cross.fn.to_kv(cross.norm(x)).chunk(2, -1))
        key_mask = None if mask is None else mask.reshape(-1, x.shape[-2])
        if cu_seqlens is None and self.reassociates(x.shape[-2]):
            z = self._values_first(q, k, v, key_mask)
        else:
            pooled = query_pool(q[None], k, v, key_mask=key_mask, cu_seqlens=cu_seqlens)
            z = cross.fn.to_out(pooled.transpose(1, 2).flatten(2))
        z = z + self.latents
        z = (feed.fn(feed.norm(z)) + z).mean(1)
        return nn.functional.normalize(z, dim=-1) if self.normalize else z

    def reassociates(self, keys: int) -> bool:
        """Is the output projection cheaper before the weighted sum of this many keys than after it?"""
        latents, inner = self.latents.shape[0], self.num_heads * self.head_dim
        return keys * (inner + latents * self.num_heads) < latents * inner

    def _values_first(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """sum_h P_h (V_h W_h); the weights P ``[B, r, H L]`` are small where keys are few."""
        logits = q @ k.mT * self.head_dim**-0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
            logits = logits.masked_fill(~mask.any(1)[:, None, None, None], 0.0)
        weights = logits.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None, None], 0.0)
        w_out = self.cross_attend_blocks[0].fn.to_out.weight  # type: ignore[union-attr]
        values = v @ w_out.unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)  # type: ignore[operator]
        return weights.transpose(1, 2).flatten(2) @ values.flatten(1, 2)

    def _heads(self, y: Tensor) -> Tensor:
        y = y if y.dim() == 3 else y[None]
        return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MultiLayerPooling(LatentPooling):
    """:class:`LatentPooling` over the layers of a model instead of over tokens: keys are one vector per
    layer, plus a learned vector ``pos_emb`` of that layer.

    Args:
        dim: features.
        layers: number of layers.
        options: as for LatentPooling.
    """

    def __init__(self, dim: int, *, layers: int, **options: Any) -> None:
        super().__init__(dim, **options)
        place = {name: options[name] for name in ("device", "dtype") if name in options}
        self.pos_emb = nn.Embedding(layers, dim, **place)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """x ``[B, layers, dim]``: a sequence's last token, or the mean of its tokens, in every layer
        (:class:`TokenPooling`) -> ``[B, dim]``.
        """
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens must be None: keys are layers, of which every sequence has as many")
        if x.dim() != 3 or x.shape[1] != self.pos_emb.num_embeddings:
            raise ValueError(
                f"x must be [B, {self.pos_emb.num_embeddings} layers, dim], got shape {list(x.shape)}"
            )
        return super().forward(x + self.pos_emb.weight, mask=mask)


class _PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module, place: dict[str, Any], *, context: bool = False) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim, **place)
        self.norm_context = nn.LayerNorm(dim, **place) if context else None


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, inner: int, place: dict[str, Any]) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, inner, bias=False, **place)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False, **place)
        self.to_out = nn.Linear(inner, dim, bias=False, **place)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int, place: dict[str, Any]) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, dim * mult * 2, **place), _Geglu(), nn.Linear(dim * mult, dim, **place)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _Geglu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, -1)
        return x * nn.functional.gelu(gate)
