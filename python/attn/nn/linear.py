"""Linear attention as a layer, with a fixed feature map or random features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..mechanisms.features import draw_omega, random_feature_attention
from ..mechanisms.linear import State, linear_attention
from .projections import Projections

WITH_OMEGA = ("performer", "fast_transformers", "rff")


class LinearAttention(Projections):
    """Multi-head :func:`attn.linear_attention` with the parameters of fast-transformers' ``AttentionLayer``:
    ``query_projection``, ``key_projection``, ``value_projection``, ``out_projection``.

    Args:
        d_input: features of the tokens.
        d_model, d_output: features of all heads, of the result (default: d_input).
        n_heads, kv_heads: heads; kv_heads divides n_heads.
        causal: row t sees tokens up to t.
        feature_map: of :func:`attn.linear_attention`; or a kind of :func:`attn.random_features`, whose
            projection is the buffer ``omega``: saved with the weights, and never drawn again unless
            :meth:`redraw` is called.
        features: rows of omega (default: D).
        generator: draws omega.
        normalize, eps: as in :func:`attn.linear_attention`.
        bias, device, dtype: of the projections.
    """

    omega: Tensor | None

    def __init__(
        self,
        d_input: int,
        d_model: int | None = None,
        d_output: int | None = None,
        *,
        n_heads: int = 8,
        kv_heads: int | None = None,
        causal: bool = False,
        feature_map: str = "elu1",
        features: int | None = None,
        generator: torch.Generator | None = None,
        normalize: bool = True,
        eps: float = 1e-6,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_input,
            d_model,
            d_output,
            n_heads=n_heads,
            kv_heads=kv_heads,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.causal, self.feature_map = causal, feature_map
        self.options: dict[str, Any] = {"normalize": normalize, "eps": eps}
        random = feature_map in WITH_OMEGA
        if not random and features is not None:
            raise ValueError(
                f"features is for random feature maps ({', '.join(WITH_OMEGA)}), got {features} for "
                f"{feature_map!r}"
            )
        dim = self.query_projection.out_features // n_heads
        omega = draw_omega(features or dim, dim, generator=generator) if random else None
        self.register_buffer("omega", omega if omega is None or device is None else omega.to(device))

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Another omega."""
        if self.omega is None:
            raise ValueError(
                f"redraw needs a random feature map ({', '.join(WITH_OMEGA)}), got {self.feature_map!r}"
            )
        self.omega.copy_(draw_omega(*self.omega.shape, generator=generator))

    def forward(
        self,
        queries: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """``[B, n, d_output]`` of queries ``[B, n, d_input]``, keys and values ``[B, m, d_input]`` (default:
        the queries, and the keys).
        """
        keys = queries if keys is None else keys
        values = keys if values is None else values
        heads = self.heads(queries, keys, values)
        out = self._mix(heads, causal=self.causal, key_mask=key_mask, cu_seqlens=cu_seqlens)
        return self.merge(out)

    def step(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """The next tokens ``[B, n, d_input]`` of the causal layer: ``([B, n, d_output], state)``."""
        if not self.causal:
            raise ValueError("step needs a layer with causal=True, this one has causal=False")
        heads = self.heads(token, token, token)
        out, state = self._mix(heads, causal=True, initial_state=state, return_state=True)
        return self.merge(out), state

    def _mix(self, heads: tuple[Tensor, Tensor, Tensor], **places: Any) -> Any:
        q, k, v = heads
        if self.omega is None:
            return linear_attention(q, k, v, feature_map=self.feature_map, **self.options, **places)
        return random_feature_attention(q, k, v, self.omega, kind=self.feature_map, **self.options, **places)
