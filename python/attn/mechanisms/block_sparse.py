"""Attention to listed blocks of keys."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..layout import BlockLayout
from .attention import attention


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`attn.attention` with a required layout: only the listed blocks of keys are read and computed.

    Args:
        q: ``[B, H, Tq, D]``.
        k: ``[B, Hkv, Tk, D]``.
        v: ``[B, Hkv, Tk, Dv]``.
        layout: :class:`attn.BlockLayout` for Tq queries and Tk keys, with a batch size of 1 or B and 1 or H
            heads.
        options: the other arguments of :func:`attn.attention`, with its defaults: causal, window,
            sink_tokens, scale, softcap, key_log_weight, segment_ids, sink_logits, head_gate, return_lse.
            They apply inside the layout.

    Returns, raises: as :func:`attn.attention`.
    """
    if layout is None:
        raise TypeError("layout must be an attn.BlockLayout, got None; attn.attention works without one")
    return attention(q, k, v, layout=layout, **options)
