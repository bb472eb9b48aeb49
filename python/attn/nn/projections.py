"""The four projections around a mixer of heads, as the released linear-attention layers name them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Projections(nn.Module):
    """``query_projection``, ``key_projection``, ``value_projection``, ``out_projection``.

    Args:
        d_input: features of the tokens.
        d_model: features of all heads together; a multiple of n_heads.
        d_output: features of the result.
        n_heads: number of heads.
        kv_heads: heads of keys and values, a divisor of n_heads (default: as many).
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        d_input: int,
        d_model: int | None = None,
        d_output: int | None = None,
        *,
        n_heads: int,
        kv_heads: int | None = None,
        bias: bool = True,
        **place: Any,
    ) -> None:
        super().__init__()
        d_model = d_input if d_model is None else d_model
        d_output = d_input if d_output is None else d_output
        kv_heads = n_heads if kv_heads is None else kv_heads
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads, got {d_model} and {n_heads}")
        if kv_heads < 1 or n_heads % kv_heads:
            raise ValueError(f"n_heads must be a multiple of kv_heads, got {n_heads} and {kv_heads}")
        self.n_heads, self.kv_heads = n_heads, kv_heads
        width = d_model // n_heads * kv_heads
        self.query_projection = nn.Linear(d_input, d_model, bias, **place)
        self.key_projection = nn.Linear(d_input, width, bias, **place)
        self.value_projection = nn.Linear(d_input, width, bias, **place)
        self.out_projection = nn.Linear(d_model, d_output, bias, **place)

    def heads(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q ``[B, H, Tq, D]``, k and v ``[B, Hkv, Tk, D]`` of tokens ``[B, T, d_input]``, as views."""
        return (
            self.query_projection(queries).unflatten(-1, (self.n_heads, -1)).transpose(1, 2),
            self.key_projection(keys).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2),
            self.value_projection(values).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2),
        )

    def merge(self, out: Tensor) -> Tensor:
        """``[B, T, d_output]`` of ``[B, H, T, D]``."""
        merged: Tensor = self.out_projection(out.transpose(1, 2).flatten(2))
        return merged
