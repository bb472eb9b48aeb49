"""Top-k selection of nodes within each graph, one graph at a time."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor


def topk_nodes(
    score: Tensor,
    *,
    ratio: float | None = None,
    k: int | None = None,
    min_score: float | None = None,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:
    """Oracle of :func:`attn.topk_nodes`."""
    perm: list[int] = []
    ends = [0]
    for i, j in pairwise(cu_seqlens.tolist()):
        values = score[i:j].double().tolist()
        if min_score is not None:
            threshold = min(max(values, default=0.0) - 1e-7, min_score)
            kept = [n for n, s in enumerate(values) if s > threshold]
        else:
            # The decimal number the user wrote, not its nearest double: 0.1 of 30 nodes are 3.
            count = min(k, j - i) if k is not None else math.ceil(Fraction(repr(ratio)) * (j - i))
            kept = sorted(range(j - i), key=lambda n: (-values[n], n))[:count]
        perm += [i + n for n in kept]
        ends.append(len(perm))
    return torch.tensor(perm, dtype=torch.int64), torch.tensor(ends, dtype=torch.int32)
