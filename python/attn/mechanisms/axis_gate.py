"""One gate per channel plus one gate per time step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call, only
from . import arguments as check
from . import pool_arguments as pool


class _AxisGate(Function):
    @staticmethod
    def forward(x: Tensor, channel: Tensor, time: Tensor) -> Tensor:
        return torch.ops.attn.axis_gate_forward(x, channel, time)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad)
        gradients = torch.ops.attn.axis_gate_backward(check.last_contiguous(dout), *ctx.saved_tensors, wanted)
        return only(wanted, gradients)


def axis_gate(x: Tensor, channel: Tensor, time: Tensor) -> Tensor:
    r"""Gating along two axes at once, in one pass.

    .. math:: out_{b c t} = x_{b c t} \, (channel_{b c} + time_{b t})

    The operation of class-semantics attention for action detection: features gated per channel and, on their
    own, per time step, and the two summed. Squeeze-and-excitation is ``time = 0``. To leave padding alone,
    set ``time`` and ``x`` to 0 there.

    Args:
        x: ``[B, C, T]``; float32, bfloat16, float16 or float64.
        channel: ``[B, C]`` in the dtype of x.
        time: ``[B, T]`` in the dtype of x.

    Returns:
        ``[B, C, T]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape.
        BackendError: no backend serves the device or dtype.

    Reference: Sridhar et al., Class Semantics-based Attention for Action Detection, ICCV 2021
    (arXiv 2109.02613); it comes without code, the formula is our reading of it.
    """
    x = pool.tokens("axis_gate", "x", x, "[B, C, T]")
    gates = []
    for name, gate, size, layout in (
        ("channel", channel, x.shape[1], "[B, C]"),
        ("time", time, x.shape[2], "[B, T]"),
    ):
        (gate,) = check.autocast(check.is_tensor(name, gate))
        check.same_place(name, gate, x, "x")
        check.same_dtype(name, gate, x, "x")
        if gate.shape != (x.shape[0], size):
            raise ValueError(
                f"{name} must be {layout} = {[x.shape[0], size]}, got shape {check.shape_text(gate)}"
            )
        gates.append(gate.contiguous())
    return call(_AxisGate, x, *gates)
