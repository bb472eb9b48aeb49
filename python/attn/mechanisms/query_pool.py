"""Pooling of many tokens by a few queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._autograd import Function, call, only
from ..capability import require_backend
from . import arguments as check
from . import pool_arguments as pool


class _QueryPool(Function):
    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens: Tensor | None,
        key_mask: Tensor | None,
        scale: float | None,
        kind: tuple[str, str],
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.attn.query_pool_forward(q, k, v, scale, cu_seqlens, key_mask, *kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.scale, ctx.kind = inputs[5:]
        out, lse = output
        over_keys = ctx.kind == ("softmax", "keys")  # else the gradient doesn't read out
        ctx.save_for_backward(*inputs[:5], out if over_keys else None, lse)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 7
        q, k, v, cu_seqlens, key_mask, out, lse = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.attn.query_pool_backward(
            check.last_contiguous(dout), q, k, v, out, lse, wanted, ctx.scale, cu_seqlens, key_mask, *ctx.kind
        )
        return *only(wanted, gradients), None, None, None, None


def query_pool(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    cu_seqlens: Tensor | None = None,
    key_mask: Tensor | None = None,
    activation: str = "softmax",
    axis: str = "keys",
) -> Tensor:
    r"""Attention of a set of queries that pools every sequence of a batch to M rows.

    .. math::
        x = scale \; q k^T, \qquad A = \mathrm{softmax}(x) \text{ over keys or over queries,}
        \quad \text{or} \quad A = \mathrm{relu}(x) / n, \qquad out = A v

    One query is PoNet's global aggregation, learned queries shared by all sequences are multiset pooling
    (PMA, GMT) and the latents of embedding poolers. Shared queries are never repeated in memory, forward or
    backward, padding is exact, and a sequence's result does not depend on the batch.

    Args:
        q: ``[B, H, M, D]``, or ``[1, H, M, D]`` shared by all sequences. float32, bfloat16, float16 or
            float64.
        k: ``[B, Hkv, L, D]``, packed ``[1, Hkv, N, D]``; H is a multiple of Hkv.
        v: ``[B, Hkv, L, Dv]``, packed ``[1, Hkv, N, Dv]``. With one head: k and v ``[B, L, C]``, packed ``[N,
            C]``, and q ``[M, C]`` or ``[B, M, C]``.
        scale: default ``D ** -0.5``. (The released GMT uses the full width of all heads instead of D.)
        cu_seqlens: int32 ``[S + 1]``: bounds of S sequences packed along the keys. q then has S or 1 sets.
        key_mask: bool ``[B, L]`` (packed ``[1, N]`` or ``[N]``), True = keep. Masked keys are never read.
        activation: ``"softmax"`` or ``"relu_mean"``, where n counts the kept keys.
        axis: softmax over the ``"keys"``, or over the ``"queries"``: every key divides one unit among the
            queries (soft assignment), and padded keys contribute nothing.

    Returns:
        ``[B, H, M, Dv]`` (packed ``[S, H, M, Dv]``; one head ``[B, M, C]``) in the dtype of q. A sequence
        without keys gives 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    Cost: ``2 M L (D + Dv)`` multiplications a head; below 8 queries keys and values are streamed once.

    References: Lee et al., Set Transformer (arXiv 1810.00825); Baek et al., Accurate Learning of Graph
    Representations with Graph Multiset Pooling (arXiv 2102.11533).
    """
    q, k, v = (check.is_tensor(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    if k.dim() < 4:
        return _one_head(q, k, v, scale, cu_seqlens, key_mask, activation, axis)
    if k.dim() != 4:
        raise ValueError(f"k must be [B, Hkv, L, D], [B, L, C] or [N, C], got shape {check.shape_text(k)}")
    if q.dim() != 4:
        raise ValueError(f"q must be [B, H, M, D] or [1, H, M, D], got shape {check.shape_text(q)}")
    q, k, v = (check.last_contiguous(x) for x in check.autocast(q, k, v))
    require_backend("query_pool", q)
    for name, x in (("k", k), ("v", v)):
        check.same_place(name, x, q)
        check.same_dtype(name, x, q)
    if v.dim() != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must be [B, Hkv, L, Dv] with the batch size, heads and tokens of k {check.shape_text(k)}, "
            f"got shape {check.shape_text(v)}"
        )
    if q.shape[3] != k.shape[3] or q.shape[3] == 0:
        raise ValueError(
            "q and k must have the same head dimension of at least 1, got shapes "
            f"{check.shape_text(q)} and {check.shape_text(k)}"
        )
    check.whole_groups("q", q.shape[1], "k", k.shape[1])
    batch, length = k.shape[0], k.shape[2]
    cu_seqlens = pool.packed(cu_seqlens, k, "k", batch, length)
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if q.shape[0] not in (1, sequences):
        raise ValueError(
            f"q must have a batch size of 1 (shared) or of the number of sequences, {sequences}, "
            f"got shape {check.shape_text(q)}"
        )
    if isinstance(key_mask, Tensor) and key_mask.dim() == 1 and batch == 1:
        key_mask = key_mask[None]
    kept = pool.mask("key_mask", key_mask, k, "k", (batch, length), "[B, L]")
    kind = (
        check.one_of("activation", activation, ("softmax", "relu_mean")),
        check.one_of("axis", axis, ("keys", "queries")),
    )
    if kind == ("relu_mean", "queries"):
        raise ValueError("activation 'relu_mean' normalises nothing over queries: axis must be 'keys'")
    return call(_QueryPool, q, k, v, cu_seqlens, kept, check.scale_or_default(scale), kind)[0]


def _one_head(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    cu_seqlens: Tensor | None,
    key_mask: Tensor | None,
    activation: str,
    axis: str,
) -> Tensor:
    """``[B, L, C]`` or ``[N, C]`` as one head of four dimensions."""
    if k.dim() < 2 or v.dim() != k.dim():
        raise ValueError(
            "k and v must both be [B, L, C] or both [N, C], got shapes "
            f"{check.shape_text(k)} and {check.shape_text(v)}"
        )
    if q.dim() not in (2, 3):
        raise ValueError(
            f"q must be [M, C] or [B, M, C] where k has one head, got shape {check.shape_text(q)}"
        )
    if k.dim() == 2:
        k, v = k[None], v[None]
    q = q[None] if q.dim() == 2 else q
    heads = (x.unsqueeze(1) for x in (q, k, v))
    return query_pool(
        *heads, scale=scale, cu_seqlens=cu_seqlens, key_mask=key_mask, activation=activation, axis=axis
    ).squeeze(1)
