"""Merging attention over disjoint sets of keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_states(outs: Tensor | Sequence[Tensor], lses: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Oracle of :func:`attn.merge_states`: ``lse = logsumexp_n lse_n``, ``out = sum_n exp(lse_n - lse)
    out_n``, in float64.

    outs ``[N, ..., D]`` and lses ``[N, ...]``, stacked or as sequences. A state with lse -inf has no keys:
    its out is not looked at.
    """
    outs = torch.stack(list(outs)).to(torch.float64)
    lses = torch.stack(list(lses)).to(torch.float64)
    top = lses.detach().amax(0)
    top = torch.where(top == -torch.inf, 0.0, top)
    mass = torch.exp(lses - top)
    total = mass.sum(0)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    seen = torch.where((lses == -torch.inf)[..., None], 0.0, outs)
    out = (mass / total)[..., None] * seen
    return out.sum(0), torch.where(empty, -torch.inf, top + torch.log(total))
