"""PoNet: mixing tokens by pooling at three ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call, only
from ..capability import dtype_name, statistics_dtype
from . import arguments as check
from . import pool_arguments as pool


class _PonetMix(Function):
    @staticmethod
    def forward(
        q: Tensor | None,
        k: Tensor,
        o: Tensor,
        segment: Tensor,
        local: Tensor,
        pooled_query: Tensor | None,
        segment_ids: Tensor | None,
        mask: Tensor | None,
        special_mask: Tensor | None,
        cu_seqlens: Tensor | None,
        options: tuple[int, int, int],
        tie: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_heads, segment_length, window = options
        return torch.ops.attn.ponet_forward(
            q,
            k,
            o,
            segment,
            local,
            pooled_query,
            num_heads,
            segment_ids,
            segment_length,
            window,
            mask,
            special_mask,
            cu_seqlens,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[1:5], *output[1:], *inputs[6:10])
        ctx.options, ctx.tie = inputs[10:]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 12
        k, o, segment, local, query, aggregate, lse, segment_ids, mask, special_mask, cu_seqlens = (
            ctx.saved_tensors
        )
        num_heads, segment_length, window = ctx.options
        wanted = list(ctx.needs_input_grad[:6])
        gradients = torch.ops.attn.ponet_backward(
            check.last_contiguous(dout),
            k,
            o,
            segment,
            local,
            query,
            aggregate,
            lse,
            wanted,
            num_heads,
            segment_ids,
            segment_length,
            window,
            mask,
            special_mask,
            cu_seqlens,
            ctx.tie,
        )
        return *only(wanted, gradients), *(None,) * 6


def ponet_mix(
    q: Tensor | None,
    k: Tensor,
    o: Tensor,
    segment: Tensor,
    local: Tensor,
    *,
    num_heads: int,
    segment_ids: Tensor | None = None,
    segment_length: int | None = None,
    window: int = 3,
    mask: Tensor | None = None,
    special_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    pooled_query: Tensor | None = None,
    tie: str = "first",
) -> Tensor:
    r"""PoNet's mixing of global aggregation, segment maximum and local maximum, in linear time.

    .. math::
        g = \mathrm{mean}_l \, q_l, \qquad
        G = \sum_l \mathrm{softmax}_l (g \cdot k_l / \sqrt{d}) \, k_l \quad \text{per head}, \qquad
        y_l = \Bigl(G + \max_{s(i) = s(l)} \mathrm{segment}_i\Bigr) \odot o_l
              + \max_{|i - l| \le w/2} \mathrm{local}_i

    The inputs are five projections of the tokens (:class:`attn.nn.PoNetMixer` has them); keys are their own
    values. Each input is read once and no intermediate of their size is written. Statistics are float32.

    Args:
        q, k, o, segment, local: ``[B, L, C]``; float32, bfloat16, float16 or float64, any strides with a
            contiguous last dimension (slices of one fused projection work without a copy).
        num_heads: heads of the global stage, a divisor of C.
        segment_ids: int32 ``[B, L]``, not decreasing within a sequence, >= 0.
        segment_length: instead of ids: token l of its sequence is in segment ``l // segment_length``. With
            neither, a sequence is one segment.
        window: w of the local maximum, odd.
        mask: bool ``[B, L]``, True = keep. Masked tokens take no part in anything and are never read; their
            rows come out 0. Positions still count them.
        special_mask: bool ``[B, L]``, True = special token such as ``[CLS]``: it takes part in the global
            stage and, if its id is shared, in the maximum of its segment, but windows skip it, and its own
            row is ``G * o`` without either maximum.
        cu_seqlens: int32 ``[S + 1]``: bounds of S sequences packed along L (B = 1). Rows past the last are 0.
        pooled_query: ``[B, C]`` (``[S, C]``), any float dtype: g itself, so that q need not exist (q = None):
            the mean of a projection is the projection of the mean.
        tie: which of equal segment maxima gets the gradient, ``"first"`` or ``"even"`` (all in equal parts,
            as the released code's ``scatter_reduce``); the local maximum's always goes to the first, as
            there.

    Returns:
        ``[B, L, C]`` in the dtype of k.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Cost: ``6 B L C`` elements of memory traffic forward, about ``10 B L C`` backward.

    Reference: Tan et al., PoNet: Pooling Network for Efficient Token Mixing in Long Sequences, ICLR 2022
    (arXiv 2110.02442).
    """
    k = pool.tokens("ponet_mix", "k", k)
    o, segment, local = (
        pool.tokens_like(name, x, k, "k") for name, x in (("o", o), ("segment", segment), ("local", local))
    )
    batch, length, channels = k.shape
    check.integer("num_heads", num_heads, 1)
    if channels % num_heads:
        raise ValueError(f"num_heads must divide the number of channels, {channels}, got {num_heads}")
    places = (
        pool.token_ids(segment_ids, k, "k"),
        pool.mask("mask", mask, k, "k", (batch, length), "[B, L]"),
        pool.mask("special_mask", special_mask, k, "k", (batch, length), "[B, L]"),
        pool.packed(cu_seqlens, k, "k", batch, length),
    )
    if segment_length is not None:
        if segment_ids is not None:
            raise ValueError("segment_ids and segment_length exclude each other: give one of them")
        check.integer("segment_length", segment_length, 1)
    check.one_of("tie", tie, pool.TIES)
    if pooled_query is None:
        if q is None:
            raise ValueError("q may be None only where pooled_query is given")
        q = pool.tokens_like("q", q, k, "k")
    else:
        if q is not None:
            raise ValueError("pooled_query replaces the mean of q: give one of them and None for the other")
        sequences = batch if places[3] is None else places[3].shape[0] - 1
        pooled_query = _pooled(pooled_query, k, (sequences, channels))
    options = (num_heads, segment_length or 0, pool.odd_window(window))
    return call(_PonetMix, q, k, o, segment, local, pooled_query, *places, options, tie)[0]


def _pooled(x: Any, k: Tensor, shape: tuple[int, int]) -> Tensor:
    x = check.is_tensor("pooled_query", x)
    check.same_place("pooled_query", x, k, "k")
    if not x.is_floating_point():
        raise TypeError(f"pooled_query must be a floating point tensor, got {dtype_name(x.dtype)}")
    if x.shape != shape:
        raise ValueError(
            f"pooled_query must be [sequences, C] = {list(shape)}, got shape {check.shape_text(x)}"
        )
    return x.to(statistics_dtype(k)).contiguous()
