"""Attention of a few new tokens to a cache, contiguous or in pages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import no_forward_mode
from ..capability import require_backend
from ..layout import BlockLayout
from . import arguments as check
from . import layout_arguments as layouts


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
    """Causal attention of the newest Tq tokens of every sequence to its cache. No gradient.

    The cache of sequence b holds ``n = seqlens[b]`` keys, the Tq new ones among them (write them first).
    Row i stands at position ``p = n - Tq + i`` and sees keys ``t <= p``; of those, with a window, ``p -
    left <= t`` or ``t < sink_tokens``; of those what the layout keeps. Long caches are cut into parts whose
    results are merged exactly. A sequence's result does not depend on the others, nor on what the cache
    holds past its n keys.

    Args:
        q: ``[B, H, Tq, D]``: queries of the new tokens, Tq typically 1 to 16. float32, bfloat16, float16 or
            float64 (CPU); strides as in :func:`attn.attention`.
        k_cache: ``[B, Hkv, S, D]``, H a multiple of Hkv; with ``block_table`` ``[P, Hkv, page, D]``. Any
            strides with a contiguous last dimension, so a cache kept as ``[B, S, Hkv, D]`` is passed
            transposed.
        v_cache: as k_cache, with Dv.
        seqlens: int32 ``[B]``: keys of each sequence, at most what its cache can hold. 0 is legal.
        block_table: int32 ``[B, pages]``: key t of sequence b is key ``t % page`` of page
            ``block_table[b, t // page]``. Entries past a sequence's length are not looked at; pages may be
            shared.
        layout: :class:`attn.BlockLayout` for Tq queries and up to S (paged: ``pages * page``) keys, in
            logical positions; keys past its kv_len are not seen.
        window: ``(left, right)``, -1 = unlimited, as in :func:`attn.attention`.
        sink_tokens: the first n keys are exempt from the window.
        scale: default ``D ** -0.5``.
        key_log_weight: float32, broadcastable to ``[B, Hkv, S]`` (paged: ``pages * page``), added to the
            logits of a key, in logical positions.
        return_lse: also return lse.

    Returns:
        out ``[B, H, Tq, Dv]``, or ``(out, lse)`` with lse ``[B, H, Tq]``: as :func:`attn.attention`. Rows
        without a key are 0 with lse -inf.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Kwon et al. 2023 (paging), arXiv 2309.06180; Dao et al. 2023, Flash-Decoding (split keys).
    """
    no_forward_mode("decode_attention", q, k_cache, v_cache, key_log_weight)
    q, k_cache, v_cache = _caches(q, k_cache, v_cache, block_table)
    batch, kv_heads = q.shape[0], k_cache.shape[1]
    capacity = k_cache.shape[2]
    if block_table is not None:
        block_table = check.int32("block_table", block_table, q).contiguous()
        if block_table.dim() != 2 or block_table.shape[0] != batch:
            raise ValueError(
                f"block_table must be [B, pages] = [{batch}, pages], got {check.shape_text(block_table)}"
            )
        capacity = block_table.shape[1] * capacity
    seqlens = check.int32("seqlens", seqlens, q).contiguous()
    if seqlens.dim() != 1 or seqlens.shape[0] != batch:
        raise ValueError(f"seqlens must be [B] = [{batch}], got shape {check.shape_text(seqlens)}")
    if check.values_are_known(seqlens):
        _check_values(seqlens, block_table, capacity, k_cache)
    left, right = check.window_pair(window)
    sinks = check.integer("sink_tokens", sink_tokens, 0)
    weight = check.float_rows("key_log_weight", key_log_weight, q, (batch, kv_heads, capacity), "[B, Hkv, S]")
    out, lse = torch.ops.attn.decode_forward(
        q.detach(),
        k_cache.detach(),
        v_cache.detach(),
        seqlens,
        block_table,
        *_layout(layout, q, capacity),
        left,
        right,
        sinks,
        check.scale_or_default(scale),
        None if weight is None else weight.detach(),
    )
    return (out, lse) if check.flag("return_lse", return_lse) else out


def _caches(q: Any, k_cache: Any, v_cache: Any, block_table: Any) -> tuple[Tensor, Tensor, Tensor]:
    q = check.is_tensor("q", q)
    k_cache, v_cache = check.is_tensor("k_cache", k_cache), check.is_tensor("v_cache", v_cache)
    if q.dim() != 4:
        raise ValueError(f"q must be [B, H, Tq, D], got shape {check.shape_text(q)}")
    form = "[B, Hkv, S, D]" if block_table is None else "[P, Hkv, page, D]"
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check.same_place(name, x, q)
        if x.dim() != 4:
            raise ValueError(f"{name} must be {form}, got shape {check.shape_text(x)}")
    # Under autocast the query follows the cache: casting a cache would copy all of it at every step.
    (q,) = check.autocast(q) if k_cache.dtype != q.dtype else (q,)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check.same_dtype(name, x, q)
    batch, heads, _, dim = q.shape
    stored, kv_heads, page, k_dim = k_cache.shape
    if block_table is None and stored != batch:
        raise ValueError(
            f"k_cache must have the batch size of q, {batch}, got shape {check.shape_text(k_cache)}"
        )
    if block_table is not None and page == 0:
        raise ValueError(f"k_cache must have pages of at least 1 key, got shape {check.shape_text(k_cache)}")
    if k_dim != dim:
        raise ValueError(
            f"k_cache must have the head dimension of q, {dim}, got shape {check.shape_text(k_cache)}"
        )
    if dim == 0:
        raise ValueError("q and k_cache must have a head dimension of at least 1, got 0")
    check.whole_groups("q", heads, "the caches", kv_heads)
    if v_cache.shape[:3] != k_cache.shape[:3]:
        raise ValueError(
            f"v_cache must have the first three sizes of k_cache {check.shape_text(k_cache)}, "
            f"got shape {check.shape_text(v_cache)}"
        )
    require_backend("decode_attention", q, head_dim=max(dim, v_cache.shape[3]))
    return check.last_contiguous(q), check.last_contiguous(k_cache), check.last_contiguous(v_cache)


def _check_values(seqlens: Tensor, block_table: Tensor | None, capacity: int, k_cache: Tensor) -> None:
    lengths = seqlens.tolist()
    for b, n in enumerate(lengths):
        if n < 0 or n > capacity:
            raise ValueError(
                f"seqlens must be in [0, {capacity}], what the cache can hold, got {n} at entry {b}"
            )
    if block_table is None or not check.values_are_known(block_table):
        return
    stored, page = k_cache.shape[0], k_cache.shape[2]
    needed = (seqlens + (page - 1)) // page
    used = torch.arange(block_table.shape[1]) < needed[:, None]
    wrong = used & ((block_table < 0) | (block_table >= stored))
    if bool(wrong.any()):
        b, i = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"block_table must hold pages in [0, {stored}) as far as seqlens reaches, "
            f"got {int(block_table[b, i])} at [{b}, {i}]"
        )


def _layout(layout: Any, q: Tensor, capacity: int) -> tuple[Any, ...]:
    if layout is None:
        return (None,) * 6 + (0, 0, -1)
    layout = layouts.within(layout, q, capacity)
    return (*layouts.tensors(layout), layout.block_q, layout.block_k, layout.kv_len)
