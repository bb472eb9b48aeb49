"""The 12 static and 2 dynamic masks of LongCA-bench (arXiv 2510.17896): for each one boolean rule, the oracle
that every kernel must agree with, and the same mask as a :class:`attn.BlockLayout`.

Sizes that the protocol fixes at 1024 tokens (window, block of block-causal) are ``min(1024, T // 8)`` here,
so that short sequences have a mask too. Document lengths are drawn log-uniformly from T/64 to T/2, seeded
with the length (LongCA-bench draws from corpus histograms).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import patterns
from ..layout import BlockLayout
from ..patterns.intervals import from_ranges

Rule = Callable[[Tensor, Tensor], Tensor]
DENSITIES = (0.1, 0.2, 0.5, 0.8, 1.0)


@dataclass(frozen=True)
class Mask:
    """One mask of one length.

    Attributes:
        rule: visible or not, elementwise on index tensors (row, key): the oracle, and FlexAttention's.
        layout: builds the same mask as a layout.
        flags: arguments of :func:`attn.attention` that describe it, or None where only a layout does.
        plain: "full" or "causal" where peers have a flag for it.
    """

    name: str
    length: int
    rule: Rule
    layout: Callable[[], BlockLayout]
    flags: dict[str, Any] | None = None
    plain: str | None = field(default=None)

    def rows(self, rows: Tensor) -> Tensor:
        """bool ``[len(rows), T]``"""
        keys = torch.arange(self.length)
        return self.rule(rows[:, None], keys[None, :]).expand(len(rows), self.length)

    def table(self) -> Tensor:
        """bool ``[T, T]``: for small T."""
        return self.rows(torch.arange(self.length))

    def area(self) -> int:
        """Visible (row, key) pairs, exact."""
        return sum(int(self.rows(part).sum()) for part in torch.arange(self.length).split(1024))


def document_bounds(length: int) -> list[int]:
    draw = random.Random(length)
    bounds = [0]
    while bounds[-1] < length:
        size = int(length / 64 * 32 ** draw.random())
        bounds.append(min(length, bounds[-1] + max(1, size)))
    return bounds


def _document_of(bounds: list[int]) -> Tensor:
    sizes = torch.tensor(bounds).diff()
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def _everywhere(i: Tensor, j: Tensor) -> Tensor:
    return (i >= 0) & (j >= 0)


def _causal(i: Tensor, j: Tensor) -> Tensor:
    return j <= i


def build(name: str, length: int) -> Mask:
    """The mask called ``name`` (one of :data:`NAMES`) for ``length`` tokens.

    ``block_sparse_0.2`` and ``variable_block_sparse_0.2`` keep that share of blocks; any in (0, 1] will do.
    """
    family, _, tail = name.rpartition("_")
    if family in ("block_sparse", "variable_block_sparse"):
        return _random_blocks(name, length, float(tail), variable=family.startswith("variable"))
    if name not in _STATIC:
        raise ValueError(f"mask must be one of {', '.join(NAMES)}, got {name!r}")
    return _STATIC[name](name, length)


def _full(name: str, length: int) -> Mask:
    layout = lambda: patterns.sliding_window(length, length, window=(-1, -1))  # noqa: E731
    return Mask(name, length, _everywhere, layout, {}, "full")


def _plain_causal(name: str, length: int) -> Mask:
    layout = lambda: patterns.sliding_window(length, length, window=(-1, -1), causal=True)  # noqa: E731
    return Mask(name, length, _causal, layout, {"causal": True}, "causal")


def _window(name: str, length: int) -> Mask:
    causal, w = name.startswith("causal"), min(1024, length // 8)

    def rule(i: Tensor, j: Tensor) -> Tensor:
        return (i - j <= w) & (j - i <= (0 if causal else w))

    flags = {"window": (w, 0 if causal else w)}
    return Mask(
        name, length, rule, lambda: patterns.sliding_window(length, length, window=w, causal=causal), flags
    )


def _document(name: str, length: int) -> Mask:
    causal, bounds = name.startswith("causal"), document_bounds(length)
    of = _document_of(bounds)

    def rule(i: Tensor, j: Tensor) -> Tensor:
        same = of[i] == of[j]
        return same & (j <= i) if causal else same

    flags = {"causal": causal, "cu_seqlens_q": torch.tensor(bounds, dtype=torch.int32)}
    return Mask(name, length, rule, lambda: patterns.document(bounds, causal=causal), flags)


def _shared_question(name: str, length: int) -> Mask:
    bounds = document_bounds(length)
    of = _document_of(bounds)

    def rule(i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((of[i] == of[j]) | (of[j] == 0))

    return Mask(name, length, rule, lambda: patterns.shared_question(bounds))


def _global_window(name: str, length: int) -> Mask:
    w = min(1024, length // 8)
    g = w // 8

    def rule(i: Tensor, j: Tensor) -> Tensor:
        return ((i - j).abs() <= w) | (i < g) | (j < g)

    return Mask(name, length, rule, lambda: patterns.global_window(length, length, window=w, global_tokens=g))


def _causal_blockwise(name: str, length: int) -> Mask:
    bounds = document_bounds(length)
    of, last = _document_of(bounds), len(bounds) - 2

    def rule(i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((of[i] == of[j]) | (of[i] == last))

    return Mask(name, length, rule, lambda: patterns.causal_blockwise(bounds))


def _prefix_lm(name: str, length: int) -> Mask:
    bounds = document_bounds(length) if name.endswith("document") else [0, length]
    prefixes = [(b - a) // 3 for a, b in pairwise(bounds)]
    of = _document_of(bounds)
    end = torch.tensor([a + p for a, p in zip(bounds, prefixes, strict=False)])

    def rule(i: Tensor, j: Tensor) -> Tensor:
        return (of[i] == of[j]) & ((j <= i) | (j < end[of[j]]))

    return Mask(name, length, rule, lambda: patterns.prefix_lm(bounds, prefix_lengths=prefixes))


def _block_causal_document(name: str, length: int) -> Mask:
    bounds, size = document_bounds(length), min(1024, length // 8)
    of, start = _document_of(bounds), torch.tensor(bounds)

    def rule(i: Tensor, j: Tensor) -> Tensor:
        block_i, block_j = (i - start[of[i]]) // size, (j - start[of[j]]) // size
        return (of[i] == of[j]) & (block_j <= block_i)

    return Mask(name, length, rule, lambda: patterns.block_causal_document(bounds, block_size=size))


def _random_blocks(name: str, length: int, share: float, *, variable: bool) -> Mask:
    """Blocks kept at random, the diagonal ones always: of 64 tokens, or of 64 to min(1024, T/8)."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of blocks kept must be in (0, 1], got {share}")
    draw = random.Random(length)
    sizes: list[int] = []
    while sum(sizes) < length:
        sizes.append(draw.randrange(64, max(65, min(1024, length // 8))) if variable else 64)
    block = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[:length]
    kept = torch.rand(len(sizes), len(sizes), generator=torch.Generator().manual_seed(length)) < share
    kept |= torch.eye(len(sizes), dtype=torch.bool)

    def rule(i: Tensor, j: Tensor) -> Tensor:
        return kept[block[i], block[j]]

    def layout() -> BlockLayout:
        if not variable:
            return BlockLayout.from_mask(kept, q_len=length, kv_len=length)
        ends = torch.tensor(sizes).cumsum(0)
        chosen = kept[block].T.long()  # [blocks, T]
        start, end = chosen * (ends - torch.tensor(sizes))[:, None], chosen * ends[:, None]
        return from_ranges(start, end, length, 64, 64, None)

    return Mask(name, length, rule, layout)


_STATIC: dict[str, Callable[[str, int], Mask]] = {
    "full": _full,
    "causal": _plain_causal,
    "full_document": _document,
    "causal_document": _document,
    "full_window": _window,
    "causal_window": _window,
    "shared_question": _shared_question,
    "global_window": _global_window,
    "causal_blockwise": _causal_blockwise,
    "prefix_lm_causal": _prefix_lm,
    "prefix_lm_document": _prefix_lm,
    "block_causal_document": _block_causal_document,
}
NAMES = (*_STATIC, "block_sparse_0.2", "variable_block_sparse_0.2")
