"""Selection of the best nodes of every graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..capability import require_backend
from . import arguments as check
from . import pool_arguments as pool


def topk_nodes(
    score: Tensor,
    *,
    ratio: float | None = None,
    k: int | None = None,
    min_score: float | None = None,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""The nodes that top-k pooling keeps of each graph of a batch; no gradient flows through the choice.

    Of a graph with n nodes, ``ceil(ratio * n)`` or ``min(k, n)`` are kept, highest score first, equal scores
    by lower index; or, with min_score, every node above ``min(max - 1e-7, min_score)`` in ascending order.
    The pooled features are ``x[perm] * score[perm, None]``, through which x and score get their gradients.

    Args:
        score: ``[N]``, nodes graph after graph; float32, bfloat16, float16 or float64. NaN ranks highest.
        ratio: in (0, 1]. A decimal ratio means what it says: 0.1 of 30 nodes are 3.
        k: >= 0.
        min_score: any number. Exactly one of the three is given.
        cu_seqlens: int32 ``[G + 1]``: bounds of the graphs.

    Returns:
        ``(perm, new_cu_seqlens)``: int64 indices of the kept nodes, graph after graph, and int32 ``[G + 1]``.
        The op ``torch.ops.attn.topk_nodes`` returns perm with all N entries (those past the last kept node
        are -1), whose shape is known without looking at values.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value.
        BackendError: no backend serves the device or dtype.

    References: Gao & Ji, Graph U-Nets (arXiv 1905.05178); Lee et al., Self-Attention Graph Pooling
    (arXiv 1904.08082).
    """
    score = check.is_tensor("score", score)
    if score.dim() != 1:
        raise ValueError(f"score must be [N], got shape {check.shape_text(score)}")
    require_backend("topk_nodes", score)
    cu = pool.packed(check.is_tensor("cu_seqlens", cu_seqlens), score, "score", 1, score.shape[0])
    given: dict[str, Any] = {"ratio": ratio, "k": k, "min_score": min_score}
    if sum(x is not None for x in given.values()) != 1:
        raise ValueError(f"exactly one of ratio, k and min_score must be given, got {given}")
    if ratio is not None and not 0 < check.finite("ratio", ratio) <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}")
    if k is not None:
        check.integer("k", k, 0)
    if min_score is not None:
        check.finite("min_score", min_score)
    perm, kept = torch.ops.attn.topk_nodes(score.detach().contiguous(), cu, ratio, k, min_score)
    count: Any = kept[-1].item()
    if torch.compiler.is_compiling():  # a number that only the run knows
        torch._check(count >= 0)
        torch._check(count <= perm.shape[0])
    return perm[:count], kept
