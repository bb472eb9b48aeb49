"""Random feature maps in float64, each formula as its paper or library writes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_features(x: Tensor, omega: Tensor, *, kind: str = "performer", stabilizer: str = "row") -> Tensor:
    """Oracle of :func:`attn.random_features`: ``[..., T, D] -> [..., T, r or 2 r]`` for omega ``[r, D]``."""
    x = x.to(torch.float64) * x.shape[-1] ** -0.25
    u = x @ omega.to(torch.float64).mT
    r = omega.shape[0]
    if kind == "rff":
        return torch.cat([u.cos(), u.sin()], -1) / math.sqrt(r)
    if kind == "relu":
        return torch.relu(u) + 1e-3
    norm = (x * x).sum(-1, keepdim=True)
    h = norm / 2
    if kind == "performer":
        return (torch.exp(u - h - _shift(u.amax(-1, keepdim=True), stabilizer)) + 1e-4) / math.sqrt(r)
    h = h + math.log(2 * r) / 2
    bound = u.abs().amax(-1, keepdim=True) if stabilizer == "row" else norm
    h = h + _shift(bound, stabilizer)
    return torch.cat([torch.exp(u - h), torch.exp(-u - h)], -1)


def _shift(bound: Tensor, stabilizer: str) -> Tensor:
    """What is taken from the exponent, from a bound per token ``[..., T, 1]``; constant to autograd."""
    bound = bound.detach()
    if stabilizer == "row":
        return bound
    if stabilizer == "global":
        return bound.amax(-2, keepdim=True)
    if stabilizer == "running":
        return bound.cummax(-2).values
    return torch.zeros_like(bound)
