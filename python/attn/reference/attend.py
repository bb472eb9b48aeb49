"""Softmax attention in float64 from an explicit mask. Plain autograd gives the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BlockLayout
from .mask import Segments, token_mask


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
    segment_ids: Segments | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    sink_logits: Tensor | None = None,
    head_gate: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Oracle of :func:`attn.attention`: the same arguments; results are float64. The ``max_seqlen`` hints
    mean nothing here.
    """
    mask = token_mask(
        q.shape[2],
        k.shape[2],
        causal=causal,
        window=window,
        sink_tokens=sink_tokens,
        segment_ids=segment_ids,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        layout=layout,
        device=q.device,
    )
    out, lse = masked_attention(
        q,
        k,
        v,
        mask,
        scale=scale,
        softcap=softcap,
        key_log_weight=key_log_weight,
        sink_logits=sink_logits,
        head_gate=head_gate,
    )
    return (out, lse) if return_lse else out


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, **options: object
) -> Tensor | tuple[Tensor, Tensor]:
    """Oracle of :func:`attn.block_sparse_attention`: :func:`attention` with a layout."""
    return attention(q, k, v, layout=layout, **options)  # type: ignore[arg-type]


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    key_log_weight: Tensor | None = None,
    sink_logits: Tensor | None = None,
    head_gate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of q ``[B, H, Tq, D]`` to the keys that ``mask`` (bool, broadcastable to ``[B, H, Tq, Tk]``)
    shows each row.

    Returns float64 out ``[B, H, Tq, Dv]`` and lse ``[B, H, Tq]``. A row that sees nothing: out 0, lse -inf,
    or the sink's logit. What a row doesn't see has no influence on it, not even when it is NaN or infinite;
    what it sees makes it NaN when it is.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    (q, bad_q), (k, bad_k), (v, bad_v) = _finite(q), _finite(k), _finite(v)
    mask = mask.expand(q.shape[0], heads, q.shape[2], k.shape[2])

    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if key_log_weight is not None:
        weight = key_log_weight.to(torch.float64).expand(q.shape[0], kv_heads, k.shape[2])
        logits = logits + weight.repeat_interleave(heads // kv_heads, dim=1)[:, :, None, :]
    bad = bad_q.any(-1)[..., :, None] | bad_k.any(-1)[..., None, :]
    logits = logits.masked_fill(bad, torch.nan).masked_fill(~mask, -torch.inf)

    columns = logits
    if sink_logits is not None:  # one more column, whose value is zero
        sink = sink_logits.to(torch.float64)[None, :, None, None].expand(*logits.shape[:3], 1)
        columns = torch.cat([logits, sink], dim=-1)
    top = (
        columns.detach().amax(-1, keepdim=True)
        if columns.shape[-1]
        else columns.new_full((*columns.shape[:3], 1), -torch.inf)
    )
    top = torch.where(top == -torch.inf, 0.0, top)
    total = torch.exp(columns - top).sum(-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    out = (torch.exp(logits - top) / total) @ v
    out = out.masked_fill(mask.double() @ bad_v.double() > 0, torch.nan)
    lse = torch.where(empty, -torch.inf, top + torch.log(total)).squeeze(-1)
    if head_gate is not None:
        out = out * head_gate.to(torch.float64)[..., None]
    return out, lse


def _finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in float64 with zeros for NaN and infinity, and where those were: 0 * NaN would spread what the mask
    hides.
    """
    bad = ~torch.isfinite(x)
    return x.to(torch.float64).masked_fill(bad, 0.0), bad
