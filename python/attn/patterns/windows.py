"""Patterns made of windows around the diagonal, sinks and global tokens.

Row ``i`` stands at position ``p = i + kv_len - q_len`` of the keys (bottom-right alignment), as in
:func:`attn.attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BlockLayout
from ..layout.check import check_sizes
from .intervals import from_ranges

Window = int | tuple[int, int]


def _sides(window: Window, causal: bool) -> tuple[int, int]:
    """Keys kept left and right of the diagonal; -1 = unlimited."""
    left, right = (window, window) if isinstance(window, int) else window
    for side in (left, right):
        if not isinstance(side, int) or side < -1:
            raise ValueError(
                f"window must be an int >= -1 (-1 = unlimited) or a pair (left, right), got {window!r}"
            )
    return left, 0 if causal else right


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be an int >= 0, got {value!r}")


def _positions(q_len: int, kv_len: int) -> Tensor:
    return torch.arange(q_len) + (kv_len - q_len)


def _window_range(p: Tensor, kv_len: int, left: int, right: int) -> tuple[Tensor, Tensor]:
    start = p - left if left >= 0 else torch.zeros_like(p)
    end = p + right + 1 if right >= 0 else torch.full_like(p, kv_len)
    return start, end


def _causal_end(p: Tensor, kv_len: int, causal: bool) -> Tensor:
    return p + 1 if causal else torch.full_like(p, kv_len)


def sliding_window(
    q_len: int,
    kv_len: int,
    *,
    window: Window,
    causal: bool = False,
    block_q: int = 64,
    block_k: int = 64,
    device: torch.device | str | None = None,
) -> BlockLayout:
    """Local attention: row at position ``p`` sees keys ``p - left <= j <= p + right``. Layout ``[1, 1, q_len,
    kv_len]``.

    Args:
        window: ``(left, right)`` keys besides the diagonal, -1 = unlimited (FlashAttention's meaning); an int
            stands for both.
        causal: no key after ``p`` (``right`` becomes 0).

    ``window=(-1, -1)`` is full attention, and causal attention with ``causal=True``. Longformer, arXiv
    2004.05150; Mistral 7B, 2310.06825.
    """
    check_sizes(block_q, block_k, q_len, kv_len)
    left, right = _sides(window, causal)
    p = _positions(q_len, kv_len)
    start, end = _window_range(p, kv_len, left, right)
    return from_ranges(start[None], end[None], kv_len, block_q, block_k, device)


def sink_window(
    q_len: int,
    kv_len: int,
    *,
    window: Window,
    sink_tokens: int,
    causal: bool = True,
    block_q: int = 64,
    block_k: int = 64,
    device: torch.device | str | None = None,
) -> BlockLayout:
    """Attention sinks with a window (A-shape): the window of :func:`sliding_window` and the first
    ``sink_tokens`` keys.

    Args:
        window: as in :func:`sliding_window`.
        sink_tokens: keys at the start, >= 0.
        causal: no key after ``p``: a sink is visible from its own position on.

    Layout ``[1, 1, q_len, kv_len]``. StreamingLLM, arXiv 2309.17453.
    """
    check_sizes(block_q, block_k, q_len, kv_len)
    _check_count("sink_tokens", sink_tokens)
    left, right = _sides(window, causal)
    p = _positions(q_len, kv_len)
    start, end = _window_range(p, kv_len, left, right)
    limit = _causal_end(p, kv_len, causal)
    return from_ranges(
        torch.stack([torch.zeros_like(p), start]),
        torch.stack([limit.clamp(max=sink_tokens), end]),
        kv_len,
        block_q,
        block_k,
        device,
    )


def global_window(
    q_len: int,
    kv_len: int,
    *,
    window: Window,
    global_tokens: int,
    causal: bool = False,
    block_q: int = 64,
    block_k: int = 64,
    device: torch.device | str | None = None,
) -> BlockLayout:
    """Window and global tokens: every row sees the window and the keys ``j < global_tokens``; rows at
    positions ``p < global_tokens`` see every key.

    Args:
        window: as in :func:`sliding_window`.
        global_tokens: tokens at the start, >= 0.
        causal: all of it only up to ``p``.

    Layout ``[1, 1, q_len, kv_len]``. Longformer, arXiv 2004.05150 (leading global tokens).
    """
    check_sizes(block_q, block_k, q_len, kv_len)
    _check_count("global_tokens", global_tokens)
    left, right = _sides(window, causal)
    p = _positions(q_len, kv_len)
    start, end = _window_range(p, kv_len, left, right)
    limit = _causal_end(p, kv_len, causal)
    # A row before the first key (p < 0) is no global row.
    global_end = torch.where((p >= 0) & (p < global_tokens), limit, limit.clamp(max=global_tokens))
    return from_ranges(
        torch.stack([torch.zeros_like(p), start]),
        torch.stack([global_end, end]),
        kv_len,
        block_q,
        block_k,
        device,
    )


def bigbird(
    q_len: int,
    kv_len: int,
    *,
    window: Window,
    global_tokens: int,
    random_blocks: int,
    generator: torch.Generator | None = None,
    block_q: int = 64,
    block_k: int = 64,
    device: torch.device | str | None = None,
) -> BlockLayout:
    """BigBird: :func:`global_window` (not causal) and, for every query block, ``random_blocks`` further key
    blocks.

    Args:
        window, global_tokens: as in :func:`global_window`.
        random_blocks: key blocks drawn for a query block, >= 0.
        generator: of random numbers, on the CPU. None: torch's default one.

    The random blocks are drawn uniformly without replacement from the key blocks of which window and global
    tokens leave something out for that query block (all of them, when there are fewer). The same state of
    ``generator`` gives the same layout.

    Layout ``[1, 1, q_len, kv_len]``. BigBird, arXiv 2007.14062.
    """
    _check_count("random_blocks", random_blocks)
    base = global_window(
        q_len, kv_len, window=window, global_tokens=global_tokens, block_q=block_q, block_k=block_k
    )
    rows, cols = base.num_q_blocks, base.num_kv_blocks
    picks = min(random_blocks, cols)
    if rows and picks:
        chosen = torch.empty(rows, picks, dtype=torch.int64)
        refused = torch.zeros(rows, picks, dtype=torch.bool)
        step = max(1, (1 << 22) // cols)
        for first in range(0, rows, step):
            luck = torch.rand(min(step, rows - first), cols, generator=generator)
            luck[_whole_blocks(base, first, step)] = -1.0
            best, chosen[first : first + step] = luck.topk(picks, dim=1)
            refused[first : first + step] = best < 0
        # A refused pick is a block kept wholly already: listing it again changes nothing.
        chosen = chosen.sort(dim=1).values.int().reshape(1, 1, rows, picks)
        count = torch.full((1, 1, rows), picks, dtype=torch.int32)
        base = base | BlockLayout(
            count, chosen, block_q=block_q, block_k=block_k, q_len=q_len, kv_len=kv_len, validate=False
        )
    return base if device is None else base.to(device)


def _whole_blocks(layout: BlockLayout, first: int, step: int) -> Tensor:
    """bool ``[rows first : first + step, cols]``: blocks kept wholly."""
    count, index, _ = layout._lists()[-1]
    count, index = count[0, 0, first : first + step], index[0, 0, first : first + step].long()
    used = torch.arange(index.shape[-1]) < count[:, None]
    whole = torch.zeros(count.shape[0], layout.num_kv_blocks + 1, dtype=torch.bool)
    return whole.scatter_(1, torch.where(used, index, layout.num_kv_blocks), True)[:, :-1]
