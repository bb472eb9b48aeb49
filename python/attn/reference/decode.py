"""Attention of a few new tokens to a cache, contiguous or paged."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BlockLayout
from .attend import masked_attention
from .mask import layout_mask


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    seqlens: Tensor,
    block_table: Tensor | None = None,
    layout: BlockLayout | None = None,
    window: tuple[int, int] | None = None,
    sink_tokens: int = 0,
    scale: float | None = None,
    key_log_weight: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Oracle of :func:`attn.decode_attention`: one batch entry at a time, on the keys that its cache holds.

    The cache of entry b holds ``n = seqlens[b]`` keys, the Tq new ones among them; row i stands at ``p = n -
    Tq + i`` and sees keys ``t <= p``, of those ``p - left <= t`` or ``t < sink_tokens``, of those what the
    layout keeps. Caches are ``[B, Hkv, S, D]``, or ``[P, Hkv, page, D]`` with ``block_table [B, pages]``;
    ``key_log_weight`` (broadcastable to ``[B, Hkv, S]``) and the layout count logical keys.
    """
    batch, _, q_len, _ = q.shape
    outs, lses = [], []
    for b in range(batch):
        n = int(seqlens[b])
        k, v = (_cached(cache, b, n, block_table) for cache in (k_cache, v_cache))
        p, t = (
            (torch.arange(q_len, device=q.device) + n - q_len)[:, None],
            torch.arange(n, device=q.device)[None, :],
        )
        visible = t <= p
        if window is not None:
            left, right = window
            near = (t >= p - left if left >= 0 else visible) & (t <= p + right if right >= 0 else visible)
            visible = visible & (near | (t < sink_tokens))
        visible = visible[None, None]
        if layout is not None:
            kept = layout_mask(layout)
            kept = torch.nn.functional.pad(kept, (0, max(0, n - layout.kv_len)))  # keys it does not know
            visible = visible & kept[min(b, kept.shape[0] - 1)][None, :, :, :n]
        weight = None
        if key_log_weight is not None:
            weight = key_log_weight.reshape((1,) * (3 - key_log_weight.dim()) + tuple(key_log_weight.shape))
            weight = weight[min(b, weight.shape[0] - 1)][None, :, :n]
        out, lse = masked_attention(
            q[b : b + 1], k[None], v[None], visible, scale=scale, key_log_weight=weight
        )
        outs.append(out)
        lses.append(lse)
    out, lse = torch.cat(outs), torch.cat(lses)
    return (out, lse) if return_lse else out


def _cached(cache: Tensor, b: int, n: int, block_table: Tensor | None) -> Tensor:
    """The first n keys (or values) of entry b: ``[Hkv, n, D]``."""
    if block_table is None:
        return cache[b, :, :n]
    page = cache.shape[2]
    pages = [cache[int(block_table[b, i])] for i in range(-(-n // page))]
    return torch.cat([cache.new_zeros(cache.shape[1], 0, cache.shape[3]), *pages], dim=1)[:, :n]
