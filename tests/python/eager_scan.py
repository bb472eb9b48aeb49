"""The linear-time mechanisms as their released PyTorch code computes them: same operations, same intermediate
tensors, our words. They are the plain implementations that the tolerance rule compares with, and the peers of
benchmarks/{flow,linear,agent,prefix}.py.

All take ``[B, H, T, D]`` and work in the dtype of their arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def flow_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, clamp: float | None = 1.0) -> Tensor:
    """Flowformer, Flow_Attention.py."""
    n, m = q.shape[2], k.shape[2]
    q, k = torch.sigmoid(q), torch.sigmoid(k)
    sink_incoming = 1.0 / torch.einsum("nhld,nhd->nhl", q + eps, k.sum(dim=2) + eps)
    source_outgoing = 1.0 / torch.einsum("nhld,nhd->nhl", k + eps, q.sum(dim=2) + eps)
    conserved_sink = torch.einsum("nhld,nhd->nhl", q + eps, (k * source_outgoing[..., None]).sum(dim=2) + eps)
    conserved_source = torch.einsum("nhld,nhd->nhl", k + eps, (q * sink_incoming[..., None]).sum(dim=2) + eps)
    if clamp is not None:
        conserved_source = torch.clamp(conserved_source, min=-clamp, max=clamp)
    sink_allocation = torch.sigmoid(conserved_sink * (float(n) / float(m)))
    source_competition = torch.softmax(conserved_source, dim=-1) * float(m)
    kv = k.transpose(-2, -1) @ (v * source_competition[..., None])
    return ((q * sink_incoming[..., None]) @ kv) * sink_allocation[..., None]


def flow_attention_causal(
    q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, clamp: float | None = 1.0
) -> Tensor:
    """Flowformer, Flow_Attention_Causal: two [B, H, T, D, Dv] tensors."""
    q, k = torch.sigmoid(q), torch.sigmoid(k)
    count = torch.arange(1, q.shape[2] + 1, device=q.device, dtype=q.dtype)[None, None, :]
    sink_incoming = 1.0 / ((q + eps) * (k.cumsum(dim=2) + eps)).sum(-1) * count
    source_outgoing = 1.0 / ((k + eps) * (q.cumsum(dim=2) + eps)).sum(-1) * count
    conserved_sink = ((q + eps) * ((k * source_outgoing[..., None]).cumsum(dim=2) + eps)).sum(-1) / count
    conserved_source = ((k + eps) * ((q * sink_incoming[..., None]).cumsum(dim=2) + eps)).sum(-1) / count
    if clamp is not None:
        conserved_source = torch.clamp(conserved_source, min=-clamp, max=clamp)
    sink_allocation = torch.sigmoid(conserved_sink)
    competing = torch.exp(conserved_source)
    source_competition = competing / competing.cumsum(dim=-1) * count
    kv = torch.einsum("nhld,nhlm->nhldm", k, v * source_competition[..., None]).cumsum(dim=2)
    qkv = torch.einsum("nhld,nhldm->nhlm", q * (sink_incoming / count)[..., None], kv)
    return qkv * sink_allocation[..., None]


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6) -> Tensor:
    """fast-transformers, LinearAttention with its elu feature map."""
    q, k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
    kv = k.transpose(-2, -1) @ v
    z = 1 / (torch.einsum("nhld,nhd->nhl", q, k.sum(dim=2)) + eps)
    return (q @ kv) * z[..., None]


def linear_attention_causal(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, chunk: int = 64) -> Tensor:
    """The usual chunked PyTorch form (T a multiple of the chunk): masked products inside chunks, a cumulative
    sum of chunk states between them.
    """
    q, k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
    z = 1 / (torch.einsum("nhld,nhld->nhl", q, k.cumsum(dim=2)) + eps)
    b, h, t, _ = q.shape
    chunk = min(chunk, t)
    q, k, v = (x.reshape(b, h, t // chunk, chunk, -1) for x in (q, k, v))
    state = k.transpose(-2, -1) @ v
    before = torch.cat([torch.zeros_like(state[:, :, :1]), state.cumsum(dim=2)[:, :, :-1]], dim=2)
    inside = torch.tril(q @ k.transpose(-2, -1)) @ v
    return (inside + q @ before).reshape(b, h, t, -1) * z[..., None]


def prefix_softmax_pool(score: Tensor, v: Tensor) -> Tensor:
    """Cumulative sums of exp(score - max) and of its product with v."""
    mass = torch.exp(score - score.amax(-1, keepdim=True))
    return (mass[..., None] * v).cumsum(dim=2) / mass.cumsum(dim=2)[..., None]


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
) -> Tensor:
    """Two scaled_dot_product_attention calls."""
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q, agents, attend(agents, k, v, attn_mask=agent_bias), attn_mask=query_bias)
