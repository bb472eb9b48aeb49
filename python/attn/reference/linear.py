"""Linear attention in float64 from its explicit weight matrix (arXiv 2006.16236)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]


def feature_map(x: Tensor, kind: str) -> Tensor:
    """phi(x): ``[..., D] -> [..., F]``. F = D, for taylor2 ``1 + D + D (D + 1) / 2``."""
    if kind == "elu1":
        return torch.nn.functional.elu(x) + 1
    if kind == "taylor2":
        d = x.shape[-1]
        first, second = torch.triu_indices(d, d)
        pairs = x[..., first] * x[..., second] * (1 - 0.5 * (first == second).to(x)).sqrt() / d**0.5
        return torch.cat([torch.ones_like(x[..., :1]), x / d**0.25, pairs], -1)
    return {"relu": torch.relu, "exp": torch.exp, "identity": torch.clone, "sigmoid": torch.sigmoid}[kind](x)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature_map: str = "elu1",
    causal: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: State | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, State]:
    """Oracle of :func:`attn.linear_attention`.

    ``A[i, j] = phi(q_i) . phi(k_j)`` for the keys that row i sees; ``out = A v / (A 1 + eps)``. An initial
    state stands for keys before the first: it adds ``phi(q) S`` above and ``phi(q) . z`` below.
    """
    q, k, v = (x.to(torch.float64) for x in (q, k, v))
    batch, heads, q_len, dim = q.shape
    kv_len, group = k.shape[2], heads // k.shape[1]
    phi_q, phi_k = _phi(q, feature_map), _phi(k, feature_map)
    if key_mask is not None:
        keep = key_mask[:, None, :, None]
        phi_k, v = torch.where(keep, phi_k, 0.0), torch.where(keep, v, 0.0)
    if feature_map == "taylor2":
        x = q @ k.repeat_interleave(group, 1).mT / dim**0.5
        weight = 1 + x + x**2 / 2
        if key_mask is not None:
            weight = torch.where(key_mask[:, None, None, :], weight, 0.0)
    else:
        weight = phi_q @ phi_k.repeat_interleave(group, 1).mT
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    weight = torch.where(_visible(q_len, kv_len, causal, bounds), weight, 0.0)
    above = weight @ v.repeat_interleave(group, 1)
    below = weight.sum(-1, keepdim=True)
    # Sequences as (batch entry, first token, end).
    spans = (
        [(b, 0, kv_len) for b in range(batch)] if bounds is None else [(0, i, j) for i, j in pairwise(bounds)]
    )
    if initial_state is not None:
        s0, z0 = (x.to(torch.float64).repeat_interleave(group, 1) for x in initial_state)
        before, mass = torch.zeros_like(above), torch.zeros_like(below)
        for n, (b, i, j) in enumerate(spans):
            rows = slice(i, j) if bounds is not None else slice(None)
            before[b, :, rows] = phi_q[b, :, rows] @ s0[n]
            mass[b, :, rows] = phi_q[b, :, rows] @ z0[n, :, :, None]
        above, below = above + before, below + mass
    if normalize:
        below = below + torch.where(below < 0, -eps, eps)
        above = torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))
    if not return_state:
        return above
    s = torch.stack([phi_k[b, :, i:j].mT @ v[b, :, i:j] for b, i, j in spans])
    z = torch.stack([phi_k[b, :, i:j].sum(1) for b, i, j in spans])
    if initial_state is not None:
        s, z = s + initial_state[0].to(torch.float64), z + initial_state[1].to(torch.float64)
    return above, (s, z)


_phi = feature_map  # the argument of the same name hides it above


def _visible(q_len: int, kv_len: int, causal: bool, bounds: list[int] | None) -> Tensor:
    i, j = torch.arange(q_len)[:, None], torch.arange(kv_len)[None, :]
    visible = j <= i if causal else torch.ones(q_len, kv_len, dtype=torch.bool)
    if bounds is None:
        return visible
    number = torch.bucketize(torch.arange(q_len), torch.tensor(bounds[1:]), right=True)
    inside = number < len(bounds) - 1
    return visible & (number[:, None] == number[None, :]) & inside[:, None]
