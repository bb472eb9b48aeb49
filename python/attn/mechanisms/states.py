"""Merging attention results over disjoint key sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call
from ..capability import dtype_name, require_backend, statistics_dtype
from . import arguments as check

# The op takes [N, B, H, T, D] and anything with fewer dimensions between N and D.
_OP_DIMS = 5


class _MergeStates(Function):
    @staticmethod
    def forward(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.attn.merge_states(outs, lses)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        outs, lses, lse = ctx.saved_tensors
        if dout is None and dlse is None:
            return None, None
        dout = outs.new_zeros(outs.shape[1:]) if dout is None else check.last_contiguous(dout)
        return torch.ops.attn.merge_states_backward(dout, dlse, outs, lses, lse)


def merge_states(outs: Tensor | Sequence[Tensor], lses: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Exact attention over the union of disjoint key sets from the results over each of them.

    .. math::
        lse = \log \sum_n e^{lse_n}, \qquad out = \sum_n e^{lse_n - lse} \, out_n

    Every attention function here returns such a pair with ``return_lse=True``, so a sequence can be split
    over calls, devices or cache pages and put together again, with exact gradients.

    Args:
        outs: ``[N, ..., D]``, or a sequence of N tensors ``[..., D]``. float32, bfloat16, float16 or float64;
            any strides with a contiguous last dimension work without a copy.
        lses: ``[N, ...]``, or a sequence of N tensors ``[...]``: natural log-sum-exp of each part, float32
            (float64 for float64 outs), any strides. ``-inf`` marks a part that saw no key: its out is not
            read, its gradients are 0.

    Returns:
        ``(out, lse)``: ``[..., D]`` in the dtype of outs and ``[...]`` in that of lses. A row no part saw a
        key for is 0 with lse ``-inf``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape.
        BackendError: no backend serves the device.
    """
    outs, lses = _stacked(outs, "outs"), _stacked(lses, "lses")
    if outs.dim() < 2:
        raise ValueError(f"outs must be [N, ..., D] with at least 2 dimensions, got shape {list(outs.shape)}")
    if outs.shape[0] == 0:
        raise ValueError(f"outs must hold at least one part, got shape {list(outs.shape)}")
    if lses.shape != outs.shape[:-1]:
        raise ValueError(
            f"lses must have the shape of outs without the last dimension, {list(outs.shape[:-1])}, "
            f"got {list(lses.shape)}"
        )
    require_backend("merge_states", outs)
    if lses.dtype != statistics_dtype(outs):
        raise ValueError(
            f"lses must be {dtype_name(statistics_dtype(outs))} for {dtype_name(outs.dtype)} outs, "
            f"got {dtype_name(lses.dtype)}"
        )
    check.same_place("lses", lses, outs, "outs")
    outs = check.last_contiguous(outs)
    if outs.dim() <= _OP_DIMS:
        return call(_MergeStates, outs, lses)
    shape = outs.shape[1:]
    out, lse = call(_MergeStates, outs.flatten(1, -2), lses.flatten(1))
    return out.reshape(shape), lse.reshape(shape[:-1])


def _stacked(parts: Tensor | Sequence[Tensor], name: str) -> Tensor:
    if isinstance(parts, Tensor):
        return parts
    if not isinstance(parts, Sequence) or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"{name} must be a tensor or a sequence of tensors, got {type(parts).__name__}")
    if len({(part.shape, part.dtype, part.device) for part in parts}) != 1:
        raise ValueError(
            f"{name} must be tensors of one shape, dtype and device, got {[list(p.shape) for p in parts]}"
        )
    return torch.stack(tuple(parts))
