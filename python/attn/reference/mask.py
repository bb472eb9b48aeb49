"""Which keys each row sees, as an explicit boolean matrix. True = visible."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..layout import BlockLayout

Segments = Tensor | tuple[Tensor, Tensor]


def token_mask(
    q_len: int,
    kv_len: int,
    *,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    sink_tokens: int = 0,
    segment_ids: Segments | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    layout: BlockLayout | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """bool ``[B|1, H|1, q_len, kv_len]``: the visibility that the flags of :func:`attn.attention` define.

    Row i of a sequence of n rows and m keys stands at position ``p = i + m - n``. It sees key t of its own
    sequence when all hold: ``t <= p`` (causal); ``p - left <= t <= p + right`` (window, -1 = unlimited) or
    ``t < sink_tokens``; equal segment ids; the layout keeps it. ``cu_seqlens_k`` defaults to
    ``cu_seqlens_q``; tokens past the last sequence see nothing and are not seen.
    """
    row, row_sequence, rows_of = _places(q_len, cu_seqlens_q, device)
    key, key_sequence, keys_of = _places(
        kv_len, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k, device
    )
    p = (row + (keys_of[row_sequence] - rows_of[row_sequence]))[:, None]
    t = key[None, :]
    visible = (row_sequence[:, None] == key_sequence[None, :]) & (row_sequence[:, None] < rows_of.numel() - 1)
    if causal:
        visible = visible & (t <= p)
    if window is not None:
        left, right = window
        near = torch.ones_like(visible)
        if left >= 0:
            near &= t >= p - left
        if right >= 0:
            near &= t <= p + right
        visible = visible & (near | (t < sink_tokens))
    visible = visible[None, None]
    if segment_ids is not None:
        q_ids, k_ids = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
        visible = visible & (q_ids[:, None, :, None] == k_ids[:, None, None, :])
    if layout is not None:
        visible = visible & layout_mask(layout)
    return visible


def _places(
    length: int, cu_seqlens: Tensor | None, device: torch.device | str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Per token its index inside its sequence and the sequence's number; per sequence its length.

    The last "sequence" collects the tokens that belong to none.
    """
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    inside: list[int] = []
    number: list[int] = []
    for n, (start, end) in enumerate(pairwise(bounds)):
        inside += range(end - start)
        number += [n] * (end - start)
    lost = length - len(inside)
    lengths = [end - start for start, end in pairwise(bounds)] + [lost]

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return integers(inside + [0] * lost), integers(number + [len(bounds) - 1] * lost), integers(lengths)


def layout_mask(layout: BlockLayout) -> Tensor:
    """bool ``[B|1, H|1, q_len, kv_len]``: a layout read entry by entry, bit by bit."""
    rows, cols = layout.num_q_blocks * layout.block_q, layout.num_kv_blocks * layout.block_k
    mask = torch.zeros(layout.batch, layout.heads, rows, cols, dtype=torch.bool)
    tiles = []
    for tile in [] if layout.partial_bits is None else layout.partial_bits.cpu():
        bit = [(tile[:, key // 32] >> (key % 32)) & 1 for key in range(layout.block_k)]
        tiles.append(torch.stack(bit, dim=1).bool())
    lists: list[tuple[Tensor, Tensor, Tensor | None]] = [
        (layout.kv_count, layout.kv_index, layout.partial_slot)
    ]
    if layout.full_count is not None and layout.full_index is not None:
        lists.append((layout.full_count, layout.full_index, None))
    for count, index, slot in lists:
        for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in count.shape)).tolist():
            for n in range(int(count[b, h, i])):
                j, tile = int(index[b, h, i, n]), -1 if slot is None else int(slot[b, h, i, n])
                block = mask[b, h, i * layout.block_q :, j * layout.block_k :]
                block[: layout.block_q, : layout.block_k] |= tiles[tile] if tile >= 0 else torch.tensor(True)
    return mask[:, :, : layout.q_len, : layout.kv_len].to(layout.device)
