"""Prefix-softmax pooling: attention whose logits depend on the key only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call
from ..capability import require_backend, statistics_dtype
from . import arguments as check
from . import scan_arguments as scan
from .states import merge_states

PrefixState = tuple[Tensor, Tensor]


class _PrefixPool(Function):
    @staticmethod
    def forward(score: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.ops.attn.prefix_pool_forward(score, v, cu_seqlens)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        score, v, cu_seqlens, out, lse = ctx.saved_tensors
        dout = torch.zeros_like(out) if dout is None else check.last_contiguous(dout)
        dlse = None if dlse is None else dlse.contiguous()
        return (*torch.ops.attn.prefix_pool_backward(dout, dlse, score, v, out, lse, cu_seqlens), None)


def prefix_softmax_pool(
    score: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax-weighted mean of all values so far, for scores that do not depend on the query.

    .. math:: out_i = \frac{\sum_{j \le i} e^{s_j} v_j}{\sum_{j \le i} e^{s_j}}

    Causal attention with one logit per key: linear in the number of tokens, a state of one value row and two
    numbers per head. Sums are taken against the running maximum, so scores of any size are safe.

    Args:
        score: ``[B, H, T]``, in the dtype of v; any strides. -inf leaves a token out.
        v: ``[B, Hv, T, Dv]``; H is a multiple of Hv; float32, bfloat16, float16 or float64.
        cu_seqlens: int32 ``[N + 1]``: bounds of N sequences packed along the tokens (B = 1); each starts
            anew. Rows past the last are 0.
        return_lse: also return the log of the denominator.

    Returns:
        out ``[B, H, T, Dv]`` in the dtype of v, or ``(out, lse)`` with lse ``[B, H, T]``, float32 (float64
        for float64 inputs), differentiable, in the form that :func:`attn.merge_states` takes. A row before
        the first score above -inf is 0 with lse -inf.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Reference: the non-approximate variant of Xue et al. 2025 (arXiv 2510.11602).
    """
    score, v = _score_and_values(score, v)
    out, lse = call(_PrefixPool, score, v, scan.packed(cu_seqlens, v, v))
    return (out, lse) if check.flag("return_lse", return_lse) else out


def prefix_softmax_pool_step(
    score: Tensor, v: Tensor, state: PrefixState | None = None
) -> tuple[Tensor, PrefixState]:
    """The next token of :func:`attn.prefix_softmax_pool`. Differentiable.

    Args:
        score: ``[B, H, 1]``, in the dtype of v.
        v: ``[B, H, 1, Dv]``, of as many heads as score.
        state: what the step before returned, None (default) at the start, or the last rows ``(out[:, :,
            -1:].float(), lse[:, :, -1:])`` of :func:`attn.prefix_softmax_pool`. It is not modified.

    Returns:
        ``(out, state)``: out ``[B, H, 1, Dv]`` in the dtype of v, and the state ``(out, lse)``, ``[B, H, 1,
        Dv]`` and ``[B, H, 1]``, in float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.
    """
    score, v = _score_and_values(score, v)
    if v.shape[2] != 1 or score.shape[1] != v.shape[1]:
        raise ValueError(
            "score and v must hold one token with the same heads, "
            f"got shapes {check.shape_text(score)} and {check.shape_text(v)}"
        )
    own = (v.to(statistics_dtype(v)), score.to(statistics_dtype(v)))
    if state is None:
        return v, own
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError(
            f"state must be a pair (out, lse) of a step before, or None, got {type(state).__name__}"
        )
    before = (
        scan.state_tensor("state[0]", state[0], tuple(v.shape), "[B, H, 1, Dv]", v),
        scan.state_tensor("state[1]", state[1], tuple(score.shape), "[B, H, 1]", v),
    )
    out, lse = merge_states((before[0], own[0]), (before[1], own[1]))
    return out.to(v.dtype), (out, lse)


def _score_and_values(score: Any, v: Any) -> tuple[Tensor, Tensor]:
    score, v = check.is_tensor("score", score), check.is_tensor("v", v)
    if v.dim() != 4:
        raise ValueError(f"v must be [B, Hv, T, Dv], got shape {check.shape_text(v)}")
    if score.dim() != 3 or score.shape[0] != v.shape[0] or score.shape[2] != v.shape[2]:
        raise ValueError(
            f"score must be [B, H, T] with the batch size and tokens of v {check.shape_text(v)}, "
            f"got shape {check.shape_text(score)}"
        )
    check.same_place("score", score, v, "v")
    score, v = check.autocast(score, v)
    check.same_dtype("score", score, v, "v")
    check.whole_groups("score", score.shape[1], "v", v.shape[1])
    require_backend("prefix_softmax_pool", v)
    return score, check.last_contiguous(v)
