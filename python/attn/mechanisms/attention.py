"""Softmax attention with flags, modifiers and block layouts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._autograd import call
from ..layout import BlockLayout
from . import arguments as check
from . import layout_arguments as layouts
from .functions import Attend, BlockSparse
from .plain import plain_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: BlockLayout | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    sink_tokens: int = 0,
    scale: float | None = None,
    softcap: float | None = None,
    key_log_weight: Tensor | None = None,
    segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    sink_logits: Tensor | None = None,
    head_gate: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Softmax attention that never builds the Tq x Tk matrix and looks only at the keys its flags let
    through.

    .. math::
        s_{ij} = \mathrm{cap}(scale \, q_i \cdot k_j) + w_j, \qquad
        lse_i = \log \Big( e^{z} + \sum_{j \in A(i)} e^{s_{ij}} \Big), \qquad
        out_i = g_i \sum_{j \in A(i)} e^{s_{ij} - lse_i} v_j

    with :math:`\mathrm{cap}(x) = c \tanh(x / c)` for ``softcap`` c, w = ``key_log_weight``, z =
    ``sink_logits`` and g = ``head_gate``, each absent unless given. A(i) are the keys that every flag lets
    row i see.

    Args:
        q: ``[B, H, Tq, D]``, float32, bfloat16, float16 or float64 (float64 on the CPU). Any strides with a
            contiguous last dimension are read in place, so ``x.transpose(1, 2)`` of a ``[B, T, H, D]``
            tensor costs nothing.
        k: ``[B, Hkv, Tk, D]``; H must be a multiple of Hkv (grouped heads are never repeated in memory).
        v: ``[B, Hkv, Tk, Dv]``; Dv may differ from D.
        layout: blocks of keys that each block of queries sees (:class:`attn.BlockLayout`); default: all.
            The other flags apply inside it. Not together with ``cu_seqlens_q``: describe packed sequences
            with ``segment_ids`` or :func:`attn.patterns.document` instead.
        causal: row i sees keys ``j <= i + Tk - Tq`` (bottom-right aligned).
        window: ``(left, right)``: row at position ``p = i + Tk - Tq`` sees keys ``p - left <= j <= p +
            right``; -1 = unlimited. The diagonal is not counted.
        sink_tokens: the first n keys (of every packed sequence) are exempt from the window; causal, layout
            and segments still hold.
        scale: default ``D ** -0.5``.
        softcap: logits become ``c * tanh(logits / c)``, c > 0, after the scale; default: off.
        key_log_weight: float32, broadcastable to ``[B, Hkv, Tk]``, added to the logits of a key after the
            softcap: the log of how often the key counts. -inf removes it. Differentiable.
        segment_ids: int32 ``[B, T]``, or a pair ``(q_ids [B, Tq], k_ids [B, Tk])``. Keys of another id are
            invisible.
        cu_seqlens_q: int32 ``[N + 1]``: bounds of N sequences packed along the tokens of a batch of 1.
            Starts at 0, does not decrease; empty sequences are legal; rows past its end see nothing.
        cu_seqlens_k: the same for keys; default ``cu_seqlens_q``.
        max_seqlen_q, max_seqlen_k: upper bounds of the sequence lengths, for callers that have them;
            results do not depend on them.
        sink_logits: float32 ``[H]``: one further logit per head with a value of zero. Differentiable.
        head_gate: broadcastable to ``[B, H, Tq]``, multiplies the output rows of each head. Differentiable.
            Tiles whose gate is all zero are skipped where neither the lse nor a gradient of the gate is
            asked for.
        return_lse: also return lse.

    Returns:
        out ``[B, H, Tq, Dv]`` in the dtype of q, or ``(out, lse)`` with lse ``[B, H, Tq]``, float32
        (float64 for float64 inputs): natural logarithm, of the attention before the gate, sink included;
        differentiable, and what :func:`attn.merge_states` takes. A row that sees no key is 0, with lse -inf
        or the sink's logit, and has zero gradients. out lies in memory as ``[B, Tq, H, Dv]`` if q does (so
        ``out.transpose(1, 2).flatten(2)`` is free), else as ``[B, H, Tq, Dv]``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    References: Dao et al. 2022 (arXiv 2205.14135); sink_tokens: Xiao et al. 2023 (arXiv 2309.17453);
    sink_logits: Miller 2023, "Attention is off by one".
    """
    if (
        layout is None
        and window is None
        and softcap is None
        and key_log_weight is None
        and segment_ids is None
        and cu_seqlens_q is None
        and cu_seqlens_k is None
        and max_seqlen_q is None
        and max_seqlen_k is None
        and sink_logits is None
        and head_gate is None
        and type(sink_tokens) is int
        and sink_tokens == 0
        and type(return_lse) is bool
    ):
        plain = plain_attention(q, k, v, causal, scale)
        if plain is not None:
            return plain if return_lse else plain[0]
    q, k, v = check.query_key_value("attention", q, k, v)
    left, right = check.window_pair(window)
    rule = (
        check.flag("causal", causal),
        left,
        right,
        check.integer("sink_tokens", sink_tokens, 0),
        check.scale_or_default(scale),
        check.softcap_or_off(softcap),
    )
    batch, heads, q_len, _ = q.shape
    weight = check.float_rows(
        "key_log_weight", key_log_weight, q, (batch, k.shape[1], k.shape[2]), "[B, Hkv, Tk]"
    )
    gate = check.float_rows("head_gate", head_gate, q, (batch, heads, q_len), "[B, H, Tq]")
    sink = _sink_logits(sink_logits, q)
    segments = check.segment_pair(segment_ids, q, k)
    packed = check.packed_sequences(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, q, k)
    want_lse = check.flag("return_lse", return_lse)
    skip_gated = gate is not None and not want_lse and not (gate.requires_grad and torch.is_grad_enabled())
    tensors = (q, k, v, weight, sink, gate, *segments)
    if layout is None:
        out, lse = call(Attend, *tensors, *packed, rule, skip_gated)
    else:
        if packed[0] is not None:
            raise ValueError(
                "layout cannot be combined with cu_seqlens_q; give segment_ids, or a layout that keeps "
                "sequences apart (attn.patterns.document)"
            )
        layout = layouts.matching(layout, q, k)
        blocks = (layout.block_q, layout.block_k)
        out, lse = call(BlockSparse, *tensors, *layouts.tensors(layout), *blocks, rule, skip_gated)
    return (out, lse) if want_lse else out


def _sink_logits(sink_logits: Any, q: Tensor) -> Tensor | None:
    if sink_logits is None:
        return None
    if check.is_tensor("sink_logits", sink_logits).dim() != 1:
        raise ValueError(
            f"sink_logits must be [H] = [{q.shape[1]}], got shape {check.shape_text(sink_logits)}"
        )
    sink = check.float_rows("sink_logits", sink_logits, q, (q.shape[1],), "[H]")
    return None if sink is None else sink.contiguous()
