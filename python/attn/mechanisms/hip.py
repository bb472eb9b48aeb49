"""HiP attention: keys chosen by a tree search, then exact attention to them, to sinks and to a window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call, only
from ..selection import HipSelection
from . import arguments as check
from .functions import Optionals, incoming


class _HipAttend(Function):
    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, index: Tensor, count: Tensor, options: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.attn.hip_attend(q, k, v, index, count, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:5], *output)
        ctx.options = inputs[5]
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Optionals:
        q, k, v, index, count, out, lse = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        saved = (*incoming(dout, dlse, out), q, k, v, out, lse)
        grads = torch.ops.attn.hip_backward(*saved, wanted, index, count, *ctx.options)
        return (*only(wanted, grads), None, None, None)


def hip_select(
    q: Tensor,
    k: Tensor,
    *,
    mask_k: int = 512,
    block_size_q: int = 64,
    block_size_k: int = 2,
    block_stride_q: int = 2,
    sliding_window: int = 256,
    sink_tokens: int = 16,
    representative: str = "center",
    reduce_heads: str = "none",
    causal: bool = True,
    scale: float | None = None,
) -> HipSelection:
    """HiP's tree search: for each block of queries, about ``mask_k`` keys that matter. No gradient.

    For query block I, the candidates are the keys that its last row sees, less the last ``sliding_window``
    of them, in n blocks of ``block_size_k`` keys. All are listed if they are at most ``mask_k`` keys.
    Otherwise ``m = ceil(mask_k / block_size_k)`` nodes, runs of n / m blocks, are halved and the best m
    halves kept, until every node is one block. A half is judged by one block of it: the largest ``q . k``
    over that block's visible keys and the sampled rows ``block_stride_q - 1, 2 * block_stride_q - 1, ...``
    of the query block (its last row if there is none). Products are compared in float32; the lower block
    wins a tie.

    Args:
        q: ``[B, H, Tq, D]``; float32, bfloat16, float16 or float64 (CPU).
        k: ``[B, Hkv, Tk, D]``, H a multiple of Hkv.
        mask_k: keys to choose, at least block_size_k.
        block_size_q: rows that share a choice.
        block_size_k: keys chosen together.
        block_stride_q: every how many rows one is scored.
        sliding_window: keys that the attention sees anyway, the query itself among them; not candidates.
        sink_tokens, scale: accepted so that the options of :func:`attn.hip_attention` can be passed on; the
            search depends on neither.
        representative: which block speaks for a node: "center" or "first".
        reduce_heads: "none": a choice for every query head; "group": one for the heads of a kv head; "all":
            one for all. Shared choices go by the largest score of their heads.
        causal: bottom-right aligned; else every row sees all keys.

    Returns:
        :class:`attn.HipSelection` ``(index [B, Hm, M, K], count [B, Hm, M])``, int32, for ``selection=`` of
        :func:`attn.hip_attention` in this and later steps.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Lee et al. 2024, arXiv 2406.09827.
    """
    q, k = check.query_key("hip_select", q, k)
    check.integer("sink_tokens", sink_tokens, 0)
    check.scale_or_default(scale)
    check.integer("block_size_k", block_size_k, 1)
    options = (
        check.integer("mask_k", mask_k, block_size_k, 1 << 30),
        check.integer("block_size_q", block_size_q, 1),
        block_size_k,
        check.integer("block_stride_q", block_stride_q, 1),
        check.integer("sliding_window", sliding_window, 0),
        check.one_of("representative", representative, ("center", "first")),
        check.one_of("reduce_heads", reduce_heads, ("none", "group", "all")),
        check.flag("causal", causal),
    )
    return HipSelection(*torch.ops.attn.hip_select(q.detach(), k.detach(), *options))


def hip_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask_k: int = 512,
    block_size_q: int = 64,
    block_size_k: int = 2,
    block_stride_q: int = 2,
    sliding_window: int = 256,
    sink_tokens: int = 16,
    representative: str = "center",
    reduce_heads: str = "none",
    causal: bool = True,
    scale: float | None = None,
    selection: HipSelection | None = None,
    return_lse: bool = False,
    return_selection: bool = False,
) -> Tensor | tuple[Any, ...]:
    """HiP attention: exact softmax attention to sinks, a sliding window and the keys of
    :func:`attn.hip_select`.

    Row i at position ``p = i + Tk - Tq`` (not causal: ``Tk - 1`` for every row) sees key ``t <= p`` when t
    is one of the first ``sink_tokens``, or ``t > p - sliding_window``, or t lies in a block chosen for its
    query block. A key counts once, however often it qualifies. Cost grows as ``Tq * (mask_k +
    sliding_window + sink_tokens)``.

    Gradients are exact for the function computed; the choice itself is a constant to autograd.

    Args:
        q: ``[B, H, Tq, D]``, float32, bfloat16, float16 or float64 (CPU); strides as in
            :func:`attn.attention`.
        k: ``[B, Hkv, Tk, D]``, H a multiple of Hkv.
        v: ``[B, Hkv, Tk, Dv]``.
        mask_k, block_size_q, block_size_k, block_stride_q, representative, reduce_heads: the search, see
            :func:`attn.hip_select`.
        sliding_window: keys before and at the row that are always seen; 0: none.
        sink_tokens: first keys that are always seen.
        causal: see above.
        scale: default ``D ** -0.5``. The reference implementation has none and expects a scaled q.
        selection: choice to use instead of searching, from :func:`attn.hip_select` or ``return_selection``
            of an earlier step with the same Tq, block_size_q and block_size_k; may be edited (ascending
            within count; repeats and overlaps count once).
        return_lse, return_selection: also return lse, the selection used.

    Returns:
        out ``[B, H, Tq, Dv]``, or a tuple ``(out, lse, selection)`` of what was asked for; out and lse as
        :func:`attn.attention`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Lee et al. 2024, arXiv 2406.09827. ``torch.ops.attn.hip_forward(q, k, v)`` is both steps in one op,
    without gradients.
    """
    q, k, v = check.query_key_value("hip_attention", q, k, v)
    check.flag("return_lse", return_lse)
    check.flag("return_selection", return_selection)
    given = selection is not None
    if selection is None:
        selection = hip_select(
            q,
            k,
            mask_k=mask_k,
            block_size_q=block_size_q,
            block_size_k=block_size_k,
            block_stride_q=block_stride_q,
            sliding_window=sliding_window,
            representative=representative,
            reduce_heads=reduce_heads,
            causal=causal,
        )
    options = (
        check.integer("block_size_q", block_size_q, 1),
        check.integer("block_size_k", block_size_k, 1),
        check.integer("sliding_window", sliding_window, 0),
        check.integer("sink_tokens", sink_tokens, 0),
        check.flag("causal", causal),
        check.scale_or_default(scale),
    )
    index, count = _selection(selection, q, k, block_size_q) if given else (selection.index, selection.count)
    out, lse = call(_HipAttend, q, k, v, index, count, options)
    extra = [x for x, want in ((lse, return_lse), (selection, return_selection)) if want]
    return (out, *extra) if extra else out


def _selection(selection: Any, q: Tensor, k: Tensor, block_size_q: int) -> tuple[Tensor, Tensor]:
    if not isinstance(selection, HipSelection):
        raise TypeError(
            f"selection must be an attn.HipSelection(index, count), got {type(selection).__name__}"
        )
    index = check.int32("selection.index", selection.index, q)
    count = check.int32("selection.count", selection.count, q)
    batch, heads, q_len, _ = q.shape
    rows = -(-q_len // block_size_q)
    if count.dim() != 3 or count.shape[0] != batch or count.shape[2] != rows:
        raise ValueError(
            f"selection.count must be [B, Hm, ceil(Tq / block_size_q)] = [{batch}, Hm, {rows}], "
            f"got shape {check.shape_text(count)}"
        )
    if count.shape[1] not in (heads, k.shape[1], 1):
        raise ValueError(
            f"selection.count must have H = {heads}, Hkv = {k.shape[1]} or 1 heads, "
            f"got shape {check.shape_text(count)}"
        )
    if index.dim() != 4 or index.shape[:3] != count.shape:
        raise ValueError(
            f"selection.index must be [B, Hm, M, K] with the first sizes of selection.count "
            f"{check.shape_text(count)}, got shape {check.shape_text(index)}"
        )
    if check.values_are_known(index) and index.numel() > 0:
        _check_values(index, count, k.shape[2])
    return check.last_contiguous(index), check.last_contiguous(count)


def _check_values(index: Tensor, count: Tensor, keys: int) -> None:
    width = index.shape[3]
    wrong = (count < 0) | (count > width)
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"selection.count must be in [0, {width}], the width of selection.index, "
            f"got {int(count[tuple(at)])} at {at}"
        )
    used = torch.arange(width) < count.unsqueeze(-1)
    wrong = used & ((index < 0) | (index >= keys))
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"selection.index must hold keys in [0, {keys}) in its first count entries, "
            f"got {int(index[tuple(at)])} at {at}"
        )
    wrong = used[..., 1:] & (index[..., 1:] < index[..., :-1])
    if bool(wrong.any()):
        *row, n = wrong.nonzero()[0].tolist()
        raise ValueError(
            "selection.index must be ascending in its first count entries, "
            f"got {index[tuple(row)][n : n + 2].tolist()} in row {row}; sort each row"
        )
