"""attn's own mechanisms in place of causal or full attention: sparse approximations, each checked against its
own rule, and linear-time mixing, which is another function and checked against its own reference."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .. import reference
from ..mechanisms.attention import attention
from ..mechanisms.flow import flow_attention
from ..mechanisms.hip import hip_attention
from ..mechanisms.linear import linear_attention
from ..mechanisms.s2 import s2_attention
from .kernel import Call, Kernel, only_attention
from .masks import Mask


def _causal_only(mask: Mask, stage: str, heads: int) -> str | None:
    return only_attention(stage) or (None if mask.plain == "causal" else "approximates causal attention only")


def _plain_only(mask: Mask, stage: str, heads: int) -> str | None:
    return only_attention(stage) or (None if mask.plain else "only full or causal")


def _hip(mask_k: int) -> Kernel:
    window, sink = 128, 16

    def oracle(q: Tensor, k: Tensor) -> Tensor:
        chosen = reference.hip_select(q, k, mask_k=mask_k, sliding_window=window, sink_tokens=sink)
        sizes = {"block_size_q": 64, "block_size_k": 2, "sliding_window": window, "sink_tokens": sink}
        length, heads = q.shape[2], q.shape[1]
        return reference.hip_token_mask(
            chosen.index, chosen.count, length, length, num_heads=heads, causal=True, **sizes
        )

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, hip_attention(q, k, v, mask_k=mask_k, sliding_window=window, sink_tokens=sink))

    return Kernel(f"attn HiP mask_k={mask_k}", lambda mask: call, _causal_only, oracle, ours=True)


def _s2(stride: int) -> Kernel:
    options: dict[str, Any] = {"block_size": 64, "local_blocks": 2, "vert_stride": stride}

    def oracle(q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[2]
        return reference.s2_token_mask(n, n, num_heads=q.shape[1], num_kv_heads=k.shape[1], **options)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, s2_attention(q, k, v, **options))

    return Kernel(f"attn S2 stride={stride}", lambda mask: call, _causal_only, oracle, ours=True)


def _sink_window(window: int) -> Kernel:
    def oracle(q: Tensor, k: Tensor) -> Tensor:
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        return ((j <= i) & ((j < 16) | (i - j <= window))).expand(1, q.shape[1], -1, -1)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cast(Tensor, attention(q, k, v, causal=True, window=(window, 0), sink_tokens=16))

    return Kernel(f"attn window={window}+16", lambda mask: call, _causal_only, oracle, ours=True)


def _linear_time(name: str, ours: Any, oracle: Any) -> Kernel:
    def make(function: Any, mask: Mask) -> Call:
        causal = mask.plain == "causal"
        return lambda q, k, v: cast(Tensor, function(q, k, v, causal=causal))

    return Kernel(
        name,
        lambda mask: make(ours, mask),
        _plain_only,
        ours=True,
        reference=lambda mask: make(oracle, mask),
    )


MECHANISMS: tuple[Kernel, ...] = (
    _hip(64),
    _hip(256),
    _s2(4),
    _s2(16),
    _sink_window(128),
    _linear_time("attn flow", flow_attention, reference.flow_attention),
    _linear_time("attn linear", linear_attention, reference.linear_attention),
)
