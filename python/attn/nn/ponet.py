"""PoNet's mixer as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..mechanisms.ponet import ponet_mix
from ..mechanisms.segment_pool import segment_pool
from .sequences import check_heads, is_token, without_padding

# Names of the released long-range-arena layer, which calls its output gate a value.
_ARENA_NAMES = {
    "W_q": "dense_q",
    "W_k": "dense_k",
    "W_v": "dense_o",
    "W_segment": "dense_segment",
    "W_local": "dense_local",
}


class PoNetMixer(nn.Module):
    """:func:`attn.ponet_mix` with its five projections and, if asked for, the one after it.

    Loads the weights of both released layers: ``dense_q, dense_k, dense_o, dense_segment, dense_local`` (the
    pretrained encoder's ``attention.self``, ``out_projection=False``) and ``W_q, W_k, W_v, W_segment,
    W_local, ff`` (long-range arena). The query is pooled before it is projected, so q of every token is never
    computed.

    Args:
        dim: features of a token.
        num_heads: heads of the global stage, a divisor of dim.
        window: of the local maximum, odd.
        segment_length: tokens a segment where a call gives neither ids nor a length (None: one segment). The
            released arena layer uses ``padded length // segments + 1``.
        tie: gradient of equal segment maxima; ``"even"`` is what the released layers do.
        bias: whether projections have one.
        out_projection: whether ``ff`` follows.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window: int = 3,
        segment_length: int | None = None,
        tie: str = "first",
        bias: bool = True,
        out_projection: bool = True,
        **place: Any,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.window, self.segment_length, self.tie = num_heads, window, segment_length, tie
        self.dense_q = nn.Linear(dim, dim, bias, **place)
        self.dense_k = nn.Linear(dim, dim, bias, **place)
        self.dense_o = nn.Linear(dim, dim, bias, **place)
        self.dense_segment = nn.Linear(dim, dim, bias, **place)
        self.dense_local = nn.Linear(dim, dim, bias, **place)
        self.ff = nn.Linear(dim, dim, bias, **place) if out_projection else nn.Identity()
        self.register_load_state_dict_pre_hook(_rename)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        segment_length: int | None = None,
        special_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """x ``[B, L, dim]`` (packed ``[1, N, dim]``) -> the same; the rest as for :func:`attn.ponet_mix`.
        Rows that are no tokens come out 0, or the bias of ``ff``.
        """
        x = without_padding(x, is_token(x, mask, cu_seqlens))
        if segment_ids is None and segment_length is None:
            segment_length = self.segment_length
        mean = segment_pool(x, reduce="mean", mask=mask, cu_seqlens=cu_seqlens)
        mixed = ponet_mix(
            None,
            self.dense_k(x),
            self.dense_o(x),
            self.dense_segment(x),
            self.dense_local(x),
            num_heads=self.num_heads,
            segment_ids=segment_ids,
            segment_length=segment_length,
            window=self.window,
            mask=mask,
            special_mask=special_mask,
            cu_seqlens=cu_seqlens,
            pooled_query=self.dense_q(mean if cu_seqlens is not None else mean.squeeze(1)),
            tie=self.tie,
        )
        out: Tensor = self.ff(mixed)
        return out

    @staticmethod
    def segments_between(special_mask: Tensor) -> Tensor:
        """Segment ids int32 ``[B, L]`` of the pretrained encoder: special tokens (``[CLS]``, ``[SEP]``) are
        segments of their own, and what stands between two of them is one.
        """
        after = nn.functional.pad(special_mask, (1, 0))[:, :-1]
        ids = (special_mask.int() + after.int()).cumsum(1)
        return (ids - ids[:, :1]).to(torch.int32)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window={self.window}, segment_length={self.segment_length}"


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for old, new in _ARENA_NAMES.items():
        for kind in ("weight", "bias"):
            if f"{prefix}{old}.{kind}" in state:
                state[f"{prefix}{new}.{kind}"] = state.pop(f"{prefix}{old}.{kind}")
