"""Flow attention as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..mechanisms.flow import FlowState, flow_attention, flow_attention_step
from .projections import Projections


class FlowAttention(Projections):
    """Multi-head :func:`attn.flow_attention` with the parameters of the released ``Flow_Attention``:
    ``query_projection``, ``key_projection``, ``value_projection``, ``out_projection``.

    Args:
        d_input: features of the tokens.
        d_model, d_output: features of all heads, of the result (default: d_input).
        n_heads, kv_heads: heads; kv_heads divides n_heads.
        causal: row t sees tokens up to t.
        drop_out: share of the result that is dropped in training.
        eps, eps_outside, clamp, competition, source_norm: as in :func:`attn.flow_attention`. The defaults are
            those of the released core; its NLP, RL and time-series copies differ in clamp (5, 10, None).
        bias, device, dtype: of the projections.
    """

    def __init__(
        self,
        d_input: int,
        d_model: int | None = None,
        d_output: int | None = None,
        *,
        n_heads: int = 8,
        kv_heads: int | None = None,
        causal: bool = False,
        drop_out: float = 0.0,
        eps: float = 1e-6,
        eps_outside: bool = False,
        clamp: float | None = 1.0,
        competition: str = "source",
        source_norm: bool = False,
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
        self.causal, self.drop_out = causal, drop_out
        self.options: dict[str, Any] = {
            "eps": eps,
            "eps_outside": eps_outside,
            "clamp": clamp,
            "competition": competition,
            "source_norm": source_norm,
        }

    def forward(
        self,
        queries: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        *,
        query_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """``[B, n, d_output]``.

        Args:
            queries: ``[B, n, d_input]``.
            keys, values: ``[B, m, d_input]``; default: the queries, and the keys.
            query_mask, key_mask, cu_seqlens: as in :func:`attn.flow_attention`; for self-attention one mask
                is enough, it is taken for both.
        """
        keys = queries if keys is None else keys
        values = keys if values is None else values
        if keys is queries:
            query_mask = key_mask if query_mask is None else query_mask
            key_mask = query_mask if key_mask is None else key_mask
        out = flow_attention(
            *self.heads(queries, keys, values),
            causal=self.causal,
            query_mask=query_mask,
            key_mask=key_mask,
            cu_seqlens=cu_seqlens,
            **self.options,
        )
        return torch.nn.functional.dropout(self.merge(out), self.drop_out, self.training)  # type: ignore[arg-type]

    def step(self, token: Tensor, state: FlowState | None = None) -> tuple[Tensor, FlowState]:
        """The next token ``[B, 1, d_input]`` of the causal layer: ``([B, 1, d_output], state)``."""
        if not self.causal or self.options["eps_outside"]:
            raise ValueError(
                f"step needs causal=True and eps_outside=False, this layer has causal={self.causal} and "
                f"eps_outside={self.options['eps_outside']}"
            )
        numbers = {name: self.options[name] for name in ("eps", "clamp")}
        out, state = flow_attention_step(*self.heads(token, token, token), state, **numbers)
        return self.merge(out), state
