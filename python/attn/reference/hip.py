"""HiP attention: tree search for key blocks, then exact attention to sinks, chosen blocks and a window (arXiv
2406.09827).

Loops over batches, heads, query blocks and nodes, to be read next to the definition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..selection import PAD, HipSelection
from .attend import masked_attention


def hip_select(
    q: Tensor,
    k: Tensor,
    *,
    mask_k: int = 512,
    block_size_q: int = 64,
    block_size_k: int = 2,
    block_stride_q: int = 2,
    sliding_window: int = 256,
    sink_tokens: int = 16,
    representative: str = "center",
    reduce_heads: str = "none",
    causal: bool = True,
    scale: float | None = None,
) -> HipSelection:
    """Oracle of :func:`attn.hip_select`. Scores are float32 dot products; ``scale`` and ``sink_tokens`` do
    not matter for the search.

    For query block I, ``vis`` keys are visible to its last row. The first ``vis - sliding_window`` of them
    are the candidates, in n blocks of ``block_size_k``. ``m = ceil(mask_k / block_size_k)`` nodes, each a run
    of blocks, are halved and the best m halves kept until every run is a single block. A half is judged by
    one block of it, its representative.
    """
    batch, heads, q_len, _ = q.shape
    kv_heads, kv_len = k.shape[1], k.shape[2]
    group = heads // kv_heads
    shared_by = {"none": 1, "group": group, "all": heads}[reduce_heads]  # query heads per selection
    m = -(-mask_k // block_size_k)
    blocks = -(-q_len // block_size_q)
    index = torch.full((batch, heads // shared_by, blocks, m), PAD, dtype=torch.int32)
    count = torch.zeros(batch, heads // shared_by, blocks, dtype=torch.int32)
    for b in range(batch):
        for hm in range(heads // shared_by):
            mine = range(hm * shared_by, (hm + 1) * shared_by)
            for block in range(blocks):
                first, end = block * block_size_q, min((block + 1) * block_size_q, q_len)
                vis = min(max(end - 1 + kv_len - q_len + 1, 0), kv_len) if causal else kv_len
                candidates = max(0, vis - sliding_window)
                n = -(-candidates // block_size_k)
                if candidates <= mask_k:
                    chosen = list(range(n))
                else:
                    rows = list(range(first + block_stride_q - 1, end, block_stride_q)) or [end - 1]
                    # One row of scores per head and sampled query: [shared_by * rows, vis].
                    dots = torch.cat([q[b, h, rows].float() @ k[b, h // group, :vis].float().T for h in mine])
                    best_query = dots.amax(0)
                    score = [
                        float(best_query[s * block_size_k : (s + 1) * block_size_k].max()) for s in range(n)
                    ]
                    chosen = _tree_search(score, n, m, representative)
                index[b, hm, block, : len(chosen)] = torch.tensor(
                    [c * block_size_k for c in chosen], dtype=torch.int32
                )
                count[b, hm, block] = len(chosen)
    return HipSelection(index.to(q.device), count.to(q.device))


def _tree_search(score: list[float], n: int, m: int, representative: str) -> list[int]:
    """The m blocks of n that the search ends with, ascending. ``score`` holds the score of every block."""
    nodes = [(i * n // m, (i + 1) * n // m - i * n // m) for i in range(m)]  # (first block, number of blocks)
    width = m
    while width < n:
        halves = []
        for start, size in nodes:
            halves += [(start, size // 2), (start + size // 2, size - size // 2)]
        halves = [half for half in halves if half[1] > 0]
        halves.sort(key=lambda half: (-score[_representative(half, representative)], half[0]))
        nodes = halves[:m]
        width *= 2
    return sorted(start for start, _ in nodes)


def _representative(node: tuple[int, int], which: str) -> int:
    start, size = node
    return {"center": start + size // 2, "first": start}[which]


def hip_token_mask(
    index: Tensor,
    count: Tensor,
    q_len: int,
    kv_len: int,
    *,
    num_heads: int,
    block_size_q: int = 64,
    block_size_k: int = 2,
    sliding_window: int = 256,
    sink_tokens: int = 16,
    causal: bool = True,
) -> Tensor:
    """bool ``[B, num_heads, q_len, kv_len]``: what each row sees, given a selection.

    Row i at position ``p = i + kv_len - q_len`` (not causal: ``kv_len - 1``) sees key ``t <= p`` when ``t <
    sink_tokens``, or ``t > p - sliding_window``, or t lies in a listed block of its query block. A key listed
    twice is still one key.
    """
    batch, selections = index.shape[:2]
    listed = torch.zeros(batch, selections, q_len, kv_len, dtype=torch.bool)
    for b, hm, block in torch.cartesian_prod(*(torch.arange(n) for n in count.shape)).tolist():
        rows = slice(block * block_size_q, (block + 1) * block_size_q)
        for first in index[b, hm, block, : int(count[b, hm, block])].tolist():
            if 0 <= first < kv_len:
                listed[b, hm, rows, first : first + block_size_k] = True
    t = torch.arange(kv_len)[None, :]
    p = (torch.arange(q_len) + kv_len - q_len if causal else torch.full((q_len,), kv_len - 1))[:, None]
    always = (t < sink_tokens) | (t > p - sliding_window)
    visible = (t <= p) & (always | listed)
    return visible.repeat_interleave(num_heads // selections, dim=1).to(index.device)


def hip_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask_k: int = 512,
    block_size_q: int = 64,
    block_size_k: int = 2,
    block_stride_q: int = 2,
    sliding_window: int = 256,
    sink_tokens: int = 16,
    representative: str = "center",
    reduce_heads: str = "none",
    causal: bool = True,
    scale: float | None = None,
    selection: HipSelection | None = None,
    return_lse: bool = False,
    return_selection: bool = False,
) -> Tensor | tuple[Any, ...]:
    """Oracle of :func:`attn.hip_attention`: the selection is a constant to autograd."""
    if selection is None:
        selection = hip_select(
            q.detach(),
            k.detach(),
            mask_k=mask_k,
            block_size_q=block_size_q,
            block_size_k=block_size_k,
            block_stride_q=block_stride_q,
            sliding_window=sliding_window,
            sink_tokens=sink_tokens,
            representative=representative,
            reduce_heads=reduce_heads,
            causal=causal,
        )
    mask = hip_token_mask(
        selection.index,
        selection.count,
        q.shape[2],
        k.shape[2],
        num_heads=q.shape[1],
        block_size_q=block_size_q,
        block_size_k=block_size_k,
        sliding_window=sliding_window,
        sink_tokens=sink_tokens,
        causal=causal,
    )
    out, lse = masked_attention(q, k, v, mask, scale=scale)
    result = (out, *([lse] if return_lse else []), *([selection] if return_selection else []))
    return result if len(result) > 1 else out
