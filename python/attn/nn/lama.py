"""Low-rank bilinear attention pooling (LAMA)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.query_pool import query_pool
from ..mechanisms.segment_pool import segment_pool
from .sequences import is_token, of_sequences, without_padding


class LamaPooling(nn.Module):
    r"""A sentence embedding of h heads whose bilinear scores have rank 1.

    .. math::
        c = \mathrm{mean}_t\, x_t, \qquad
        e_{ht} = \tanh\bigl((p_h \cdot c)(q_h \cdot x_t)\bigr), \qquad
        a_{h} = \mathrm{softmax}_t \Bigl(e_{ht} / \sqrt{\textstyle\sum_g e_{gt}^2 + \epsilon}\Bigr), \qquad
        u_h = \sum_t a_{ht}\, x_t

    The norm over heads has no epsilon in known code, whose gradient is NaN as soon as a padded token is zero;
    here padded tokens take no part and eps keeps the gradient of a zero token finite.

    Args:
        dim: features of a token.
        num_heads: h.
        output_dim: features of a linear layer over the ``h * dim`` of the heads (None: no such layer).
        eps: added to the squared norm.
        device, dtype: of the parameters.

    Reference: Mehta et al., Low Rank Factorization for Compact Multi-Head Self-Attention (arXiv 1912.00835).
    """

    def __init__(
        self, dim: int, *, num_heads: int, output_dim: int | None = None, eps: float = 1e-12, **place: Any
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ValueError(f"num_heads must be at least 1, got {num_heads}")
        self.eps = eps
        self.P = nn.Parameter(torch.empty(dim, num_heads, **place))
        self.Q = nn.Parameter(torch.empty(dim, num_heads, **place))
        for parameter in (self.P, self.Q):
            nn.init.xavier_uniform_(parameter)
        self.output = None if output_dim is None else nn.Linear(num_heads * dim, output_dim, **place)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """x ``[B, L, dim]`` with mask bool ``[B, L]`` (True = keep) or packed ``[N, dim]`` with cu_seqlens
        int32 ``[S + 1]`` -> ``[B, h * dim]`` (``[B, output_dim]``), packed ``[S, ...]``.
        """
        kept = is_token(x, mask, cu_seqlens)
        x = without_padding(x, kept)
        mean = segment_pool(x, reduce="mean", mask=mask, cu_seqlens=cu_seqlens)
        mean = mean if cu_seqlens is not None else mean.squeeze(1)
        scores = torch.tanh(of_sequences(mean @ self.P, x, cu_seqlens) * (x @ self.Q))
        # In float32: 1 / sqrt(eps) is beyond float16.
        exact = scores.double() if scores.dtype == torch.float64 else scores.float()
        squares = exact.square().sum(-1, keepdim=True) + self.eps
        if kept is not None:
            squares = torch.where(kept[..., None], squares, 1.0)
        logits = (exact * squares.rsqrt()).to(x.dtype)
        heads = torch.eye(self.P.shape[1], dtype=x.dtype, device=x.device)
        pooled = query_pool(heads, logits, x, scale=1.0, key_mask=mask, cu_seqlens=cu_seqlens).flatten(1)
        return pooled if self.output is None else self.output(pooled)

    def extra_repr(self) -> str:
        return f"dim={self.P.shape[0]}, num_heads={self.P.shape[1]}, eps={self.eps}"
