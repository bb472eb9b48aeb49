"""S2-Attention: local blocks and a vertical stride, shifted from head to head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call, only
from . import arguments as check
from .functions import Optionals, incoming


class _S2(Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, rule: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        return torch.ops.attn.s2_forward(q, k, v, *rule)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3], *output)
        ctx.rule = inputs[3]
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Optionals:
        q, k, v, out, lse = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        saved = (*incoming(dout, dlse, out), q, k, v, out, lse)
        return (*only(wanted, torch.ops.attn.s2_backward(*saved, wanted, *ctx.rule)), None)


def s2_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int = 64,
    local_blocks: int = 8,
    vert_stride: int = 8,
    head_offset: int = 0,
    head_step: int | None = None,
    dense_heads: int = 0,
    homogeneous: bool = False,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """S2-Attention: each head keeps the last blocks of keys and every ``vert_stride``-th block, and heads
    shift the stride, so that together they see everything.

    Position ``p = i + Tk - Tq`` lies in block ``b = p // block_size``, key t in block ``j = t //
    block_size``. Row i of a head whose kv head is g sees key ``t <= p`` when::

        j > b - local_blocks   or   (j + g * head_step + head_offset) % vert_stride == 0

    Not causal (Tq == Tk): with ``past = max(0, b - j - local_blocks + 1) + max(0, j - b - local_blocks +
    1)``, it sees every key with ``past % vert_stride == 0``, in all heads alike. The pattern is a formula
    inside the kernel: nothing is built per call, and the cost is that of the kept blocks.

    Args:
        q: ``[B, H, Tq, D]``, float32, bfloat16, float16 or float64 (CPU); strides as in
            :func:`attn.attention`.
        k: ``[B, Hkv, Tk, D]``, H a multiple of Hkv; the query heads of a group share their kv head's pattern.
        v: ``[B, Hkv, Tk, Dv]``.
        block_size: tokens per block, a multiple of 16.
        local_blocks: local blocks kept, the row's own among them; at least 1.
        vert_stride: distance of the vertical blocks; 1 keeps everything.
        head_offset: added to every shift. 1 gives the pattern of Phi-3-small.
        head_step: shift from a kv head to the next; default ``max(1, vert_stride // H)``.
        dense_heads: the last kv heads keep everything.
        homogeneous: all heads use the pattern of kv head 0 (head_step is 0).
        causal: see above.
        scale: default ``D ** -0.5``.
        return_lse: also return lse.

    Returns:
        out ``[B, H, Tq, Dv]``, or ``(out, lse)`` with lse ``[B, H, Tq]``: as :func:`attn.attention`. Rows
        without a key are 0 with lse -inf.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Lin et al. 2024, arXiv 2407.17678. :func:`attn.patterns.strided` gives the same pattern as a layout.
    """
    q, k, v = check.query_key_value("s2_attention", q, k, v)
    check.integer("block_size", block_size, 16)
    if block_size % 16 != 0:
        raise ValueError(f"block_size must be a multiple of 16, got {block_size}")
    check.flag("causal", causal)
    if not causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            "q and k must have the same number of tokens where causal is False, "
            f"got {q.shape[2]} and {k.shape[2]}"
        )
    rule = (
        block_size,
        check.integer("local_blocks", local_blocks, 1),
        check.integer("vert_stride", vert_stride, 1),
        check.integer("head_offset", head_offset, -(2**31) + 1),
        None if head_step is None else check.integer("head_step", head_step, -(2**31) + 1),
        check.integer("dense_heads", dense_heads, 0, k.shape[1]),
        check.flag("homogeneous", homogeneous),
        causal,
        check.scale_or_default(scale),
    )
    out, lse = call(_S2, q, k, v, rule)
    return (out, lse) if check.flag("return_lse", return_lse) else out
