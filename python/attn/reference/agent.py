"""Agent attention in float64: two softmax attentions, materialised (arXiv 2312.08874)."""

from __future__ import annotations

import torch
from torch import Tensor


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    *,
    agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    scale: float | None = None,
    agent_scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Oracle of :func:`attn.agent_attention`: ``softmax(q A^T + B2) softmax(A k^T + B1) v``."""
    q, k, v, agents = (x.to(torch.float64) for x in (q, k, v, agents))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    agent_scale = scale if agent_scale is None else agent_scale
    gather = agents @ k.mT * scale
    if agent_bias is not None:
        gather = gather + agent_bias.to(torch.float64)
    if key_mask is not None:
        keep = key_mask[:, None, None, :]
        gather, v = torch.where(keep, gather, -torch.inf), torch.where(keep.mT, v, 0.0)
    top = gather.detach().amax(-1, keepdim=True)
    mass = torch.exp(gather - torch.where(top == -torch.inf, 0.0, top))
    total = mass.sum(-1, keepdim=True)
    agent_values = (mass / torch.where(total == 0, 1.0, total)) @ v
    spread = q @ agents.mT * agent_scale
    if query_bias is not None:
        spread = spread + query_bias.to(torch.float64)
    return spread.softmax(-1) @ agent_values
