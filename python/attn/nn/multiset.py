"""Pooling of a set by learned seeds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.query_pool import query_pool
from .sequences import check_heads, is_token, without_padding

CONVENTIONS = ("gmt", "pyg")


class MultisetPooling(nn.Module):
    r"""Pooling by multihead attention (PMA) of k learned seeds, over the tokens or nodes of every sequence.

    Two layers go by that name, and they differ:

    - ``"gmt"``, the Set Transformer's and Graph Multiset Transformer's: logits divided by the square root of
      the full width, residual of the projected seed; parameters ``S``, ``mab.fc_q, fc_k, fc_v, fc_o, ln0,
      ln1``.
    - ``"pyg"``, PyTorch Geometric's: divided by the square root of a head's width, a projection after the
      attention, residual of the seed itself, inputs through a linear layer and a ReLU; parameters ``lin``,
      ``seed``, ``mab.attn.in_proj_weight, mab.attn.out_proj, mab.lin, layer_norm1, layer_norm2``.

    ``axis="queries"`` (GMT's ``cluster``): seeds compete for each node. Padding is exact in both; in the
    released GMT a padded node still gives 1/k of itself to every seed then.

    Args:
        dim: features of a token and of the result.
        num_seeds: k.
        num_heads: a divisor of dim.
        convention, axis: as above.
        layer_norm: whether there are the two layer norms.
        device, dtype: of the parameters.

    References: Lee et al., Set Transformer (arXiv 1810.00825); Baek et al., Graph Multiset Pooling
    (arXiv 2102.11533).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_seeds: int,
        num_heads: int,
        convention: str = "gmt",
        axis: str = "keys",
        layer_norm: bool = False,
        **place: Any,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
        self.num_heads, self.convention, self.axis = num_heads, convention, axis
        seeds = nn.Parameter(torch.empty(1, num_seeds, dim, **place))
        nn.init.xavier_uniform_(seeds)
        if convention == "gmt":
            self.S = seeds
            self.mab: nn.Module = _GmtBlock(dim, layer_norm, place)
        else:
            self.seed = seeds
            self.lin = nn.Linear(dim, dim, **place)
            self.mab = _PygBlock(dim, num_heads, layer_norm, place)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """x ``[B, L, dim]`` with mask bool ``[B, L]`` (True = keep) or packed ``[N, dim]`` with cu_seqlens
        int32 ``[S + 1]`` -> ``[B, k, dim]`` or ``[S, k, dim]``.
        Of an empty sequence, what a pooled 0 gives.
        """
        x = without_padding(x, is_token(x, mask, cu_seqlens))
        gmt = self.convention == "gmt"
        seeds, x = (self.S, x) if gmt else (self.seed, self.lin(x).relu())
        q, k, v = self.mab.projections(seeds, x)  # type: ignore[operator]
        width = q.shape[-1] if gmt else q.shape[-1] // self.num_heads
        pooled = query_pool(
            *(self._heads(y) for y in (q, k, v)),
            scale=width**-0.5,
            cu_seqlens=cu_seqlens,
            key_mask=None if mask is None else mask.reshape(-1, x.shape[-2]),
            axis=self.axis,
        )
        out: Tensor = self.mab(q if gmt else seeds, pooled.transpose(1, 2).flatten(2))
        return out

    def _heads(self, y: Tensor) -> Tensor:
        y = y if y.dim() == 3 else y[None]
        return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, convention={self.convention!r}, axis={self.axis!r}"


class _GmtBlock(nn.Module):
    def __init__(self, dim: int, layer_norm: bool, place: dict[str, Any]) -> None:
        super().__init__()
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(dim, dim, **place) for _ in range(4))
        if layer_norm:
            self.ln0, self.ln1 = nn.LayerNorm(dim, **place), nn.LayerNorm(dim, **place)
        self.layer_norm = layer_norm

    def projections(self, seeds: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.fc_q(seeds), self.fc_k(x), self.fc_v(x)

    def forward(self, residual: Tensor, pooled: Tensor) -> Tensor:
        out = residual + pooled
        out = self.ln0(out) if self.layer_norm else out
        out = out + self.fc_o(out).relu()
        return self.ln1(out) if self.layer_norm else out


class _PygBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, layer_norm: bool, place: dict[str, Any]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, num_heads, batch_first=True, **place)  # for its parameters
        self.lin = nn.Linear(dim, dim, **place)
        if layer_norm:
            self.layer_norm1, self.layer_norm2 = nn.LayerNorm(dim, **place), nn.LayerNorm(dim, **place)
        self.layer_norm = layer_norm

    def projections(self, seeds: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, biases = (y.chunk(3) for y in (self.attn.in_proj_weight, self.attn.in_proj_bias))
        q, k, v = (
            nn.functional.linear(y, w, b) for y, w, b in zip((seeds, x, x), weights, biases, strict=True)
        )
        return q, k, v

    def forward(self, residual: Tensor, pooled: Tensor) -> Tensor:
        out = residual + self.attn.out_proj(pooled)
        out = self.layer_norm1(out) if self.layer_norm else out
        out = out + self.lin(out).relu()
        return self.layer_norm2(out) if self.layer_norm else out
