"""A layer of random-feature attention that is studied, not an approximation: frozen scores, ReLU, mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..mechanisms.query_pool import query_pool


class FrozenReluAttention(nn.Module):
    r"""M heads of attention with one query, frozen random query-key matrices and trained value vectors.

    .. math::
        f(x_0, x_1 \dots x_N) = \sum_m \frac1N \sum_i
            \mathrm{relu}(\langle W_m, \tilde x_0 \tilde x_i^T \rangle) \, \langle v_m, \tilde x_i \rangle,
        \qquad \tilde x = [x; 1]

    Computed as :func:`attn.query_pool` with ``activation="relu_mean"``: queries :math:`W_m^T \tilde x_0`, one
    per head, over keys and values :math:`\tilde x_i`. Linear in v, so it can be fitted by ridge regression
    on :meth:`features`.

    Args:
        dim: d, of the tokens.
        heads: M.
        biased: add ``blockdiag(I, 0)`` to every W, the paper's biased features.
        std: of the entries of W (the paper's variance is 1/4).
        generator: draws W, the buffer ``weight`` ``[M, d + 1, d + 1]``.

    Reference: Fu, Guo, Bai and Mei 2023 (arXiv 2307.11353).
    """

    weight: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        biased: bool = False,
        std: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if dim < 1 or heads < 1:
            raise ValueError(f"dim and heads must be at least 1, got {dim} and {heads}")
        weight = torch.randn(heads, dim + 1, dim + 1, generator=generator) * std
        if biased:
            weight[:, :dim, :dim] += torch.eye(dim)
        self.register_buffer("weight", weight)
        self.value = nn.Parameter(torch.zeros(heads, dim + 1))

    def features(self, query: Tensor, keys: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """``[B, M, d + 1]``: what v is multiplied with, for query ``[B, d]`` and keys ``[B, N, d]``."""
        query, keys = (torch.cat([x, torch.ones_like(x[..., :1])], -1) for x in (query, keys))
        q = torch.einsum("bi,mij->bmj", query, self.weight.to(query.dtype))
        # All heads share keys and values: they are the queries of one head.
        rows = keys[:, None]
        return query_pool(
            q[:, None], rows, rows, scale=1.0, activation="relu_mean", key_mask=key_mask
        ).squeeze(1)

    def forward(self, query: Tensor, keys: Tensor, *, key_mask: Tensor | None = None) -> Tensor:
        """``[B]``."""
        features = self.features(query, keys, key_mask=key_mask)
        return torch.einsum("bmi,mi->b", features, self.value.to(features.dtype))
