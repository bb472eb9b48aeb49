"""One boolean oracle per pattern of :mod:`attn.patterns`, written from its definition: bool ``[q_len,
kv_len]``, True = visible.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .s2 import s2_token_mask


def _table(q_len: int, kv_len: int, rule: Callable[[int, int], bool]) -> Tensor:
    return torch.tensor([rule(i, j) for i in range(q_len) for j in range(kv_len)], dtype=torch.bool).reshape(
        q_len, kv_len
    )


def _pair(window: int | tuple[int, int]) -> tuple[int, int]:
    return (window, window) if isinstance(window, int) else window


def _near(p: int, j: int, window: int | tuple[int, int]) -> bool:
    left, right = _pair(window)
    return (left == -1 or p - j <= left) and (right == -1 or j - p <= right)


def sliding_window(q_len: int, kv_len: int, *, window: int | tuple[int, int], causal: bool = False) -> Tensor:
    """Keys within the window of the row's position, causally those not after it."""
    past = kv_len - q_len
    return _table(q_len, kv_len, lambda i, j: (not causal or j <= i + past) and _near(i + past, j, window))


def sink_window(
    q_len: int, kv_len: int, *, window: int | tuple[int, int], sink_tokens: int, causal: bool = True
) -> Tensor:
    """The first keys or keys within the window, causally those not after the row's position."""
    past = kv_len - q_len
    return _table(
        q_len,
        kv_len,
        lambda i, j: (not causal or j <= i + past) and (j < sink_tokens or _near(i + past, j, window)),
    )


def global_window(
    q_len: int, kv_len: int, *, window: int | tuple[int, int], global_tokens: int, causal: bool = False
) -> Tensor:
    """Window, global keys, global rows."""
    past = kv_len - q_len

    def rule(i: int, j: int) -> bool:
        p = i + past
        return (not causal or j <= p) and (j < global_tokens or 0 <= p < global_tokens or _near(p, j, window))

    return _table(q_len, kv_len, rule)


def _document_of(cu_seqlens: list[int]) -> list[int]:
    return [n for n, (start, end) in enumerate(pairwise(cu_seqlens)) for _ in range(start, end)]


def document(cu_seqlens: list[int], *, causal: bool = True) -> Tensor:
    """Same document, causally not after the row."""
    of, total = _document_of(cu_seqlens), cu_seqlens[-1]
    return _table(total, total, lambda i, j: of[i] == of[j] and (not causal or j <= i))


def prefix_lm(cu_seqlens: list[int], *, prefix_lengths: list[int]) -> Tensor:
    """Same document, and in its prefix or not after the row."""
    of, total = _document_of(cu_seqlens), cu_seqlens[-1]
    return _table(
        total,
        total,
        lambda i, j: of[i] == of[j] and (j <= i or j - cu_seqlens[of[j]] < prefix_lengths[of[j]]),
    )


def block_causal_document(cu_seqlens: list[int], *, block_size: int) -> Tensor:
    """Same document, and in a block of it not after the row's block."""
    of, total = _document_of(cu_seqlens), cu_seqlens[-1]
    block = [(t - cu_seqlens[of[t]]) // block_size for t in range(total)]
    return _table(total, total, lambda i, j: of[i] == of[j] and block[j] <= block[i])


def shared_question(cu_seqlens: list[int]) -> Tensor:
    """Causal documents, and document 0 visible to all later ones."""
    of, total = _document_of(cu_seqlens), cu_seqlens[-1]
    return _table(total, total, lambda i, j: j <= i and (of[i] == of[j] or of[j] == 0))


def causal_blockwise(cu_seqlens: list[int]) -> Tensor:
    """Causal documents, and everything before it visible to the last document that has tokens."""
    of, total = _document_of(cu_seqlens), cu_seqlens[-1]
    return _table(total, total, lambda i, j: j <= i and (of[i] == of[j] or of[i] == of[-1]))


def halo_2d(height: int, width: int, *, block: int, halo: int, order: str = "raster") -> Tensor:
    """Tokens of the row's square of the image or at most ``halo`` away from it in either direction."""
    if order == "raster":
        place = [(y, x) for y in range(height) for x in range(width)]
    else:
        squares = [(y, x) for y in range(0, height, block) for x in range(0, width, block)]
        place = [(sy + y, sx + x) for sy, sx in squares for y in range(block) for x in range(block)]

    def inside(a: int, b: int) -> bool:
        corner = a // block * block
        return corner - halo <= b < corner + block + halo

    return _table(
        len(place),
        len(place),
        lambda i, j: inside(place[i][0], place[j][0]) and inside(place[i][1], place[j][1]),
    )


def strided(
    q_len: int, kv_len: int, *, num_heads: int, num_kv_heads: int | None = None, **options: object
) -> Tensor:
    """S2-Attention: bool ``[1, num_heads, q_len, kv_len]``."""
    kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    return s2_token_mask(q_len, kv_len, num_heads=num_heads, num_kv_heads=kv_heads, **options)  # type: ignore[arg-type]
