"""Flow attention in float64 from its explicit weight matrix (arXiv 2202.06258)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def flow_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    eps: float = 1e-6,
    eps_outside: bool = False,
    clamp: float | None = 1.0,
    competition: str = "source",
    source_norm: bool = False,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Oracle of :func:`attn.flow_attention`: every sequence on its own, masked tokens taken out first."""
    q, k, v = (x.to(torch.float64) for x in (q, k, v))
    batch, heads, q_len, _ = q.shape
    k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    if causal:
        query_mask = key_mask = key_mask if query_mask is None else query_mask
    queries = _kept(query_mask, batch, q_len, q.device)
    keys = _kept(key_mask, batch, k.shape[2], q.device)
    out = q.new_zeros(batch, heads, q_len, v.shape[3])
    bounds_q = [0, q_len] if cu_seqlens is None else cu_seqlens.tolist()
    bounds_k = [0, k.shape[2]] if cu_seqlens is None else bounds_q
    for b in range(batch):
        for (q0, q1), (k0, k1) in zip(pairwise(bounds_q), pairwise(bounds_k), strict=True):
            rows = torch.arange(q0, q1, device=q.device)[queries[b, q0:q1]]
            columns = torch.arange(k0, k1, device=q.device)[keys[b, k0:k1]]
            if rows.numel() == 0 or columns.numel() == 0:
                continue
            options = (eps, eps if eps_outside else 0.0, clamp)
            if causal:
                weight = _causal_weight(q[b][:, rows], k[b][:, columns], *options)
            else:
                weight = _weight(q[b][:, rows], k[b][:, columns], *options, competition, source_norm)
            out = out.index_put(
                (torch.tensor(b), torch.arange(heads)[:, None], rows[None, :]), weight @ v[b][:, columns]
            )
    return out


def _kept(mask: Tensor | None, batch: int, length: int, device: torch.device) -> Tensor:
    return (
        torch.ones(batch, length, dtype=torch.bool, device=device)
        if mask is None
        else mask.expand(batch, length)
    )


def _weight(
    q: Tensor, k: Tensor, eps: float, outside: float, clamp: float | None, competition: str, source_norm: bool
) -> Tensor:
    """``[H, n, m]`` for q ``[H, n, D]`` and k ``[H, m, D]``."""
    n, m = q.shape[1], k.shape[1]
    sink, source = q.sigmoid(), k.sigmoid()
    # Flow through every sink and every source when nothing is conserved yet.
    incoming = _dot(sink + eps, source.sum(1, keepdim=True) + eps) + outside
    outgoing = _dot(source + eps, sink.sum(1, keepdim=True) + eps) + outside
    # The same once the other side's capacity is fixed to 1.
    conserved_sink = _dot(sink + eps, (source / outgoing).sum(1, keepdim=True) + eps) + outside
    conserved_source = _dot(source + eps, (sink / incoming).sum(1, keepdim=True) + eps) + outside
    if source_norm:
        conserved_source = conserved_source * (m / n)
    if clamp is not None:
        conserved_source = conserved_source.clamp(-clamp, clamp)
    allocation = torch.sigmoid(conserved_sink * (n / m))
    competing = conserved_source.softmax(1 if competition == "source" else 0) * m
    return (allocation / incoming) * (sink @ source.mT) * competing.mT


def _causal_weight(q: Tensor, k: Tensor, eps: float, outside: float, clamp: float | None) -> Tensor:
    """``[H, T, T]``, zero above the diagonal."""
    t = torch.arange(1, q.shape[1] + 1, dtype=q.dtype, device=q.device)[None, :, None]
    sink, source = q.sigmoid(), k.sigmoid()
    incoming = _dot(sink + eps, source.cumsum(1) + eps) + outside
    outgoing = _dot(source + eps, sink.cumsum(1) + eps) + outside
    conserved_sink = (_dot(sink + eps, (source * t / outgoing).cumsum(1) + eps) + outside) / t
    conserved_source = (_dot(source + eps, (sink * t / incoming).cumsum(1) + eps) + outside) / t
    if clamp is not None:
        conserved_source = conserved_source.clamp(-clamp, clamp)
    allocation = torch.sigmoid(conserved_sink)
    competing = t * torch.exp(conserved_source - torch.logcumsumexp(conserved_source, 1))
    return ((allocation / incoming) * (sink @ source.mT) * competing.mT).tril()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
