"""Maximum or mean over a sliding window of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call
from . import arguments as check
from . import pool_arguments as pool


class _WindowPool(Function):
    @staticmethod
    def forward(
        x: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        options: tuple[int, str, int],
        include_pad: bool,
    ) -> Tensor:
        return torch.ops.attn.window_pool_forward(x, *options, mask, cu_seqlens, include_pad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options, ctx.include_pad = inputs[3:]
        x, *places = inputs[:3]
        ctx.save_for_backward(x if ctx.options[1] == "max" else None, *places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, cu_seqlens = ctx.saved_tensors
        dout = check.last_contiguous(dout)
        dx = torch.ops.attn.window_pool_backward(dout, x, *ctx.options, mask, cu_seqlens, ctx.include_pad)
        return dx, None, None, None, None


def window_pool(
    x: Tensor,
    *,
    window: int,
    reduce: str = "max",
    dilation: int = 1,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    count_include_pad: bool = False,
) -> Tensor:
    r"""Maximum or mean over the window around every token, same length as the input.

    .. math::
        out_l = \mathrm{reduce} \{ x_{l + d i} : -\lfloor w/2 \rfloor \le i \le \lfloor w/2 \rfloor \}

    ``max_pool1d`` and ``avg_pool1d`` with stride 1 and "same" padding, but over ``[B, L, C]`` as it lies in
    memory, and exact at boundaries: a window stops at the ends of its sequence and skips masked tokens, no
    sentinel takes part.

    Args:
        x: ``[B, L, C]`` (or ``[L, C]``); float32, bfloat16, float16 or float64.
        window: w, odd.
        reduce: ``"max"``; among equal values the first of the window gets the gradient, as in ``max_pool1d``.
            Or ``"mean"``, over the tokens there are.
        dilation: d >= 1.
        mask: bool ``[B, L]``, True = keep. Masked tokens are never read; their rows come out 0.
        cu_seqlens: int32 ``[S + 1]``: bounds of S sequences packed along L (B = 1). Rows past the last are 0.
        count_include_pad: a mean divides by w everywhere.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Cost: reads x and writes the result once; backward reads dout, for a maximum also x, and writes dx.
    """
    x = check.is_tensor("x", x)
    if x.dim() == 2:
        mask = mask[None] if isinstance(mask, Tensor) else mask
        return window_pool(
            x[None],
            window=window,
            reduce=reduce,
            dilation=dilation,
            mask=mask,
            cu_seqlens=cu_seqlens,
            count_include_pad=count_include_pad,
        )[0]
    x = pool.tokens("window_pool", "x", x)
    options = (
        pool.odd_window(window),
        check.one_of("reduce", reduce, ("max", "mean")),
        check.integer("dilation", dilation, 1),
    )
    kept = pool.mask("mask", mask, x, "x", tuple(x.shape[:2]), "[B, L]")
    cu_seqlens = pool.packed(cu_seqlens, x, "x", x.shape[0], x.shape[1])
    return call(_WindowPool, x, kept, cu_seqlens, options, check.flag("count_include_pad", count_include_pad))
