"""Token-aware average pooling: per token, a weighted sum of neighbourhood means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call, only
from . import arguments as check
from . import pool_arguments as pool

MAX_DILATIONS = 8


class _TapPool(Function):
    @staticmethod
    def forward(x: Tensor, weights: Tensor, image: tuple[int, int], dilations: list[int]) -> Tensor:
        return torch.ops.attn.tap_pool_forward(x, weights, *image, dilations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.image, ctx.dilations = inputs[2:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:2])
        gradients = torch.ops.attn.tap_pool_backward(
            check.last_contiguous(dout), x, weights, wanted, *ctx.image, ctx.dilations
        )
        return *only(wanted, gradients), None, None


def tap_pool(
    x: Tensor, weights: Tensor, *, height: int, width: int, dilations: Sequence[int] = (0, 1, 2, 3)
) -> Tensor:
    r"""Token-aware average pooling (TAP): each image token is a mixture of means over 3 x 3 neighbourhoods.

    .. math::
        out_n = \sum_i weights_{n i} \; \frac{1}{9} \sum_{\delta \in \{-d_i, 0, d_i\}^2} x_{n + \delta}

    Neighbours outside the image count as 0 and the divisor is always 9; dilation 0 is the token itself.
    Nothing of the unfolded neighbourhoods or of the stack of pooled images is ever in memory.

    Args:
        x: ``[B, height * width, C]``, row by row; float32, bfloat16, float16 or float64.
        weights: ``[B, height * width, K]`` in the dtype of x, usually a softmax over K.
        height, width: the image; it need not be square.
        dilations: K distances, 1 to 8 of them.

    Returns:
        The shape and dtype of x.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Cost: ``9 (K - 1)`` additions per element from the cache; x is read and the result written once.

    Reference: Guo et al., Robustifying Token Attention for Vision Transformers, ICCV 2023 (arXiv 2303.11126).
    """
    x = pool.tokens("tap_pool", "x", x, "[B, height * width, C]")
    check.integer("height", height, 0)
    check.integer("width", width, 0)
    if height * width != x.shape[1]:
        raise ValueError(f"height * width must be the number of tokens, {x.shape[1]}, got {height} * {width}")
    if isinstance(dilations, (str, bytes)) or not isinstance(dilations, Sequence):
        raise TypeError(f"dilations must be a sequence of ints, got {type(dilations).__name__}")
    distances = [check.integer("dilations", d, 0) for d in dilations]
    if not 1 <= len(distances) <= MAX_DILATIONS:
        raise ValueError(f"dilations must hold 1 to {MAX_DILATIONS} numbers, got {len(distances)}")
    (weights,) = check.autocast(check.is_tensor("weights", weights))
    check.same_place("weights", weights, x, "x")
    check.same_dtype("weights", weights, x, "x")
    shape = (*x.shape[:2], len(distances))
    if weights.shape != shape:
        raise ValueError(
            f"weights must be [B, height * width, dilations] = {list(shape)}, "
            f"got shape {check.shape_text(weights)}"
        )
    return call(_TapPool, x, check.last_contiguous(weights), (height, width), distances)
