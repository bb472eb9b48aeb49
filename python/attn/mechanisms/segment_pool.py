"""Reduction of the tokens of each segment to one row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call
from . import arguments as check
from . import pool_arguments as pool

REDUCTIONS = ("max", "mean", "sum", "first", "last")


class _SegmentPool(Function):
    """Kept for the gradient: of a maximum the tokens that have it, where they are noted, else x; of the other
    reductions nothing but the number of tokens.
    """

    @staticmethod
    def forward(
        x: Tensor,
        segment_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        mask: Tensor | None,
        num_segments: int,
        reduce: str,
        tie: str,
        noted: bool,
    ) -> tuple[Tensor, ...]:
        if noted:
            return torch.ops.attn.segment_max_forward(x, segment_ids, cu_seqlens, num_segments, mask)
        return (torch.ops.attn.segment_pool_forward(x, segment_ids, cu_seqlens, num_segments, reduce, mask),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, *places = inputs[:4]
        ctx.options, noted = inputs[4:7], inputs[7]
        ctx.tokens = x.shape[-2]
        if noted:
            ctx.mark_non_differentiable(output[1])
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(None, output[1], *places)
        else:
            ctx.save_for_backward(x if ctx.options[1] == "max" else None, None, *places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 8
        x, token, segment_ids, cu_seqlens, mask = ctx.saved_tensors
        num_segments, reduce, tie = ctx.options
        dx = torch.ops.attn.segment_pool_backward(
            check.last_contiguous(dout),
            x,
            segment_ids,
            cu_seqlens,
            num_segments,
            reduce,
            mask,
            tie,
            token,
            ctx.tokens,
        )
        return dx, *(None,) * 7


def segment_pool(
    x: Tensor,
    *,
    segment_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reduce: str = "max",
    tie: str = "first",
    mask: Tensor | None = None,
    num_segments: int | None = None,
) -> Tensor:
    r"""Maximum, mean, sum, first or last token of every segment.

    .. math:: out_s = \mathrm{reduce} \{ x_l : \mathrm{segment}(l) = s \}

    The reduction is over the segment's tokens and nothing else: no sentinel and no initial value takes part,
    so a maximum of exactly 0 keeps its whole gradient (``torch.scatter_reduce`` with ``include_self=False``
    loses part of it) and a segment of negative numbers is not cut off at 0. Sums are kept in float32 and
    added in an order that depends on the segment alone: the result is deterministic and the same in every
    batch.

    Args:
        x: ``[B, L, C]``; with cu_seqlens ``[N, C]``. float32, bfloat16, float16 or float64.
        segment_ids: int32 ``[B, L]``, not decreasing along L, >= 0. Ids without a token give rows of 0.
        cu_seqlens: int32 ``[S + 1]``: segment s is tokens ``cu_seqlens[s] .. cu_seqlens[s + 1] - 1``. With
            neither, each batch entry is one segment.
        reduce: ``"max"``, ``"mean"``, ``"sum"``, ``"first"`` or ``"last"``.
        tie: which of equal maxima gets the gradient: ``"first"``, or all in equal parts with ``"even"``.
        mask: bool ``[B, L]`` (``[N]``), True = keep. What a masked token holds is never read, its id neither.
        num_segments: number of rows with segment_ids; default: the greatest id of a kept token plus 1, which
            has to be looked up (give it under ``torch.compile``).

    Returns:
        ``[B, num_segments, C]``, with cu_seqlens ``[S, C]``, in the dtype of x. Empty segments are 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Cost: reads x once, forward; backward writes its gradient. x is kept for the gradient of a maximum with
    ``tie="even"`` or on a GPU only, and read again; else the CPU keeps the tokens that have the maximum,
    ``[S, C]`` in int32.
    """
    x = check.is_tensor("x", x)
    if segment_ids is not None and cu_seqlens is not None:
        raise ValueError("segment_ids and cu_seqlens exclude each other: give one of them")
    if cu_seqlens is not None and x.dim() == 3 and x.shape[0] == 1:
        x = x.squeeze(0)  # whose gradient is a view; that of x[0] is a copy
        mask = mask[0] if isinstance(mask, Tensor) and mask.dim() == 2 else mask
    if cu_seqlens is not None:
        x = pool.tokens("segment_pool", "x", x, "[N, C] with cu_seqlens", 2)
        cu_seqlens = pool.packed(cu_seqlens, x, "x", 1, x.shape[0])
    else:
        x = pool.tokens("segment_pool", "x", x)
        segment_ids = pool.token_ids(segment_ids, x, "x")
    kept = pool.mask("mask", mask, x, "x", tuple(x.shape[:-1]), "[N]" if cu_seqlens is not None else "[B, L]")
    check.one_of("reduce", reduce, REDUCTIONS)
    check.one_of("tie", tie, pool.TIES)
    if segment_ids is None:
        if num_segments is not None:
            raise ValueError(f"num_segments needs segment_ids, got {num_segments} without")
        num_segments = 1
    elif num_segments is None:
        num_segments = _count(segment_ids, kept)
    else:
        check.integer("num_segments", num_segments, 0)
    wanted = torch.is_grad_enabled() and x.requires_grad
    noted = wanted and reduce == "max" and tie == "first" and x.device.type == "cpu"
    return call(_SegmentPool, x, segment_ids, cu_seqlens, kept, num_segments, reduce, tie, noted)[0]


def _count(segment_ids: Tensor, mask: Tensor | None) -> int:
    ids = segment_ids if mask is None else torch.where(mask, segment_ids, -1)
    return int(ids.max()) + 1 if ids.numel() else 0
