"""Patterns over packed documents: ``cu_seqlens [N + 1]`` holds the start of each and the total length; empty
documents are legal.

All layouts are ``[1, 1, T, T]`` with ``T = cu_seqlens[-1]``. ``cu_seqlens`` may be a tensor (its values are
read: a device synchronisation for CUDA tensors) or a sequence of ints; ``device=None`` means the tensor's
device. Definitions follow the masks of LongCA-bench, arXiv 2510.17896.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import BlockLayout
from ..layout.check import check_sizes
from .intervals import from_ranges

Lengths = Tensor | Sequence[int]
Device = torch.device | str | None


class _Rows(NamedTuple):
    """Per token (int64 [T]): its own index, its document, and where that document starts and ends."""

    token: Tensor
    document: Tensor
    start: Tensor
    end: Tensor


def _integers(name: str, values: Lengths) -> Tensor:
    tensor = torch.as_tensor(values)
    if tensor.numel() == 0:  # an empty list would be float32
        tensor = tensor.long()
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ValueError(
            f"{name} must be a one-dimensional list of integers, got {tensor.dtype} {list(tensor.shape)}"
        )
    return tensor.to("cpu", torch.int64)


def _rows(cu_seqlens: Lengths) -> _Rows:
    cu = _integers("cu_seqlens", cu_seqlens)
    if cu.numel() == 0 or int(cu[0]) != 0 or bool((cu.diff() < 0).any()):
        shown = cu.tolist() if cu.numel() <= 16 else [*cu[:16].tolist(), "..."]
        raise ValueError(f"cu_seqlens must start at 0 and never fall, got {shown}")
    document = torch.repeat_interleave(torch.arange(cu.numel() - 1), cu.diff())
    return _Rows(torch.arange(int(cu[-1])), document, cu[:-1][document], cu[1:][document])


def _build(
    start: Tensor, end: Tensor, block_q: int, block_k: int, cu_seqlens: Lengths, device: Device
) -> BlockLayout:
    start, end = (x if x.dim() == 2 else x[None] for x in (start, end))
    check_sizes(block_q, block_k, start.shape[1], start.shape[1])
    if device is None and isinstance(cu_seqlens, Tensor):
        device = cu_seqlens.device
    return from_ranges(start, end, start.shape[1], block_q, block_k, device)


def document(
    cu_seqlens: Lengths, *, causal: bool = True, block_q: int = 64, block_k: int = 64, device: Device = None
) -> BlockLayout:
    """Each token sees its own document, with ``causal`` up to itself (document or varlen mask)."""
    rows = _rows(cu_seqlens)
    return _build(rows.start, rows.token + 1 if causal else rows.end, block_q, block_k, cu_seqlens, device)


def prefix_lm(
    cu_seqlens: Lengths,
    *,
    prefix_lengths: Lengths,
    block_q: int = 64,
    block_k: int = 64,
    device: Device = None,
) -> BlockLayout:
    """Prefix language model: within each document, every token sees the first ``prefix_lengths[n]`` tokens
    and those up to itself.

    Args:
        prefix_lengths: N integers, ``0 <= prefix_lengths[n] <= length`` of document n.

    One document gives the plain prefix-LM mask (T5, arXiv 1910.10683).
    """
    rows, prefix = _rows(cu_seqlens), _integers("prefix_lengths", prefix_lengths)
    lengths = _integers("cu_seqlens", cu_seqlens).diff()
    if prefix.shape != lengths.shape:
        raise ValueError(
            f"prefix_lengths must hold one number per document ({lengths.numel()}), got {prefix.numel()}"
        )
    wrong = ((prefix < 0) | (prefix > lengths)).nonzero()
    if wrong.numel():
        n = int(wrong[0])
        raise ValueError(
            f"prefix_lengths[{n}] must be in [0, {int(lengths[n])}] (the length of document {n}), "
            f"got {int(prefix[n])}"
        )
    end = torch.maximum(rows.token + 1, rows.start + prefix[rows.document])
    return _build(rows.start, end, block_q, block_k, cu_seqlens, device)


def block_causal_document(
    cu_seqlens: Lengths, *, block_size: int, block_q: int = 64, block_k: int = 64, device: Device = None
) -> BlockLayout:
    """Documents cut into blocks of ``block_size`` tokens (the last may be short): a token sees its own block
    wholly, and all earlier blocks of its document. Chunk-wise autoregressive video and audio models."""
    if not isinstance(block_size, int) or block_size <= 0:
        raise ValueError(f"block_size must be a positive int, got {block_size!r}")
    rows = _rows(cu_seqlens)
    block = (rows.token - rows.start) // block_size
    end = torch.minimum(rows.start + (block + 1) * block_size, rows.end)
    return _build(rows.start, end, block_q, block_k, cu_seqlens, device)


def shared_question(
    cu_seqlens: Lengths, *, block_q: int = 64, block_k: int = 64, device: Device = None
) -> BlockLayout:
    """Document 0 is a question shared by the answers after it: each document is causal, and documents 1, 2,
    ... also see the whole of document 0. Reward models and preference optimisation with many answers to one
    prompt."""
    rows, cu = _rows(cu_seqlens), _integers("cu_seqlens", cu_seqlens)
    question = int(cu[1]) if cu.numel() > 1 else 0
    seen = torch.where(rows.document > 0, question, 0)
    start = torch.stack([torch.zeros_like(rows.token), rows.start])
    return _build(start, torch.stack([seen, rows.token + 1]), block_q, block_k, cu_seqlens, device)


def causal_blockwise(
    cu_seqlens: Lengths, *, block_q: int = 64, block_k: int = 64, device: Device = None
) -> BlockLayout:
    """In-context learning: each document is causal and sees only itself, but the last document that is not
    empty sees everything before it."""
    rows = _rows(cu_seqlens)
    last = rows.document[-1:] if rows.document.numel() else rows.document
    start = torch.where(rows.document == last, 0, rows.start) if last.numel() else rows.start
    return _build(start, rows.token + 1, block_q, block_k, cu_seqlens, device)
