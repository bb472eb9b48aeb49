"""Prefix-softmax pooling in float64 from its explicit weight matrix (the non-approximate variant of arXiv
2510.11602).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import _visible


def prefix_softmax_pool(score: Tensor, v: Tensor, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """Oracle of :func:`attn.prefix_softmax_pool`: row i is the softmax of ``score[0..i]`` of its sequence,
    times v.
    """
    score, v = score.to(torch.float64), v.to(torch.float64)
    length = v.shape[2]
    visible = _visible(length, length, True, None if cu_seqlens is None else cu_seqlens.tolist())
    logits = torch.where(visible, score[:, :, None, :], -torch.inf)
    top = logits.detach().amax(-1, keepdim=True)
    weight = torch.exp(logits - torch.where(top == -torch.inf, 0.0, top))
    total = weight.sum(-1, keepdim=True)
    return (weight / torch.where(total == 0, 1.0, total)) @ v
