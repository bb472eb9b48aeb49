"""torch.autograd.Functions over the attend and block_sparse ops. Their arguments are checked already.

``rule`` holds the ops' arguments from causal to softcap; tensors are passed one by one, because autograd,
vmap and torch.compile look for them in the argument list only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, only
from .arguments import last_contiguous

Rule = tuple[bool, int, int, int, "float | None", float]
Optionals = tuple[Tensor | None, ...]


def incoming(dout: Tensor | None, dlse: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of out and lse in the form the backward ops take; None stands for zero."""
    dout = torch.zeros_like(out) if dout is None else last_contiguous(dout)
    return dout, None if dlse is None else dlse.contiguous()


class Attend(Function):
    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_log_weight: Tensor | None,
        sink_logits: Tensor | None,
        head_gate: Tensor | None,
        segment_q: Tensor | None,
        segment_k: Tensor | None,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        rule: Rule,
        skip_gated: bool,
    ) -> tuple[Tensor, Tensor]:
        places = (key_log_weight, segment_q, segment_k, cu_seqlens_q, cu_seqlens_k, sink_logits, head_gate)
        return torch.ops.attn.attend_forward(q, k, v, *rule, *places, skip_gated)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:10], *output)
        ctx.rule = inputs[10]
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Optionals:
        q, k, v, key_log_weight, sink_logits, head_gate, *places, out, lse = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:6])
        saved = (*incoming(dout, dlse, out), q, k, v, out, lse)
        grads = torch.ops.attn.attend_backward(
            *saved, wanted, *ctx.rule, key_log_weight, *places, sink_logits, head_gate
        )
        return (*only(wanted, grads), *[None] * 6)


class BlockSparse(Function):
    """As :class:`Attend`, without packed sequences, with the six tensors of a BlockLayout."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        key_log_weight: Tensor | None,
        sink_logits: Tensor | None,
        head_gate: Tensor | None,
        segment_q: Tensor | None,
        segment_k: Tensor | None,
        kv_count: Tensor,
        kv_index: Tensor,
        full_count: Tensor | None,
        full_index: Tensor | None,
        partial_slot: Tensor | None,
        partial_bits: Tensor | None,
        block_q: int,
        block_k: int,
        rule: Rule,
        skip_gated: bool,
    ) -> tuple[Tensor, Tensor]:
        layout = (kv_count, kv_index, full_count, full_index, partial_slot, partial_bits, block_q, block_k)
        places = (key_log_weight, segment_q, segment_k, sink_logits, head_gate)
        return torch.ops.attn.block_sparse_forward(q, k, v, *layout, *rule, *places, skip_gated)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:14], *output)
        ctx.blocks, ctx.rule = inputs[14:16], inputs[16]
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Optionals:
        q, k, v, key_log_weight, sink_logits, head_gate, segment_q, segment_k, *layout, out, lse = (
            ctx.saved_tensors
        )
        wanted = list(ctx.needs_input_grad[:6])
        saved = (*incoming(dout, dlse, out), q, k, v, out, lse)
        places = (key_log_weight, segment_q, segment_k, sink_logits, head_gate)
        grads = torch.ops.attn.block_sparse_backward(*saved, wanted, *layout, *ctx.blocks, *ctx.rule, *places)
        return (*only(wanted, grads), *[None] * 12)
