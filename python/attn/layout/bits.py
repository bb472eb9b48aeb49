"""Packed token bit tiles: how a layout says which tokens of a cut block are kept.

A tile describes one block of ``block_q`` rows and ``block_k`` keys as int32 words ``[block_q, W]``, ``W =
ceil(block_k / 32)``: bit ``j`` of word ``w`` of row ``r`` is set when row ``r`` of the block sees its key
``32 w + j``. Bits past ``block_k``, past the last row or past the last key of the sequence are zero, so that
equal blocks have equal words. Tiles live in a pool ``[P, block_q, W]``: most layouts cut blocks in a handful
of ways, and all blocks cut alike share one slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def words(block_k: int) -> int:
    """Number of int32 words that hold one row of a tile."""
    return -(-block_k // WORD)


def pack(mask: Tensor) -> Tensor:
    """bool ``[..., block_k]`` -> int32 ``[..., W]``."""
    block_k = mask.shape[-1]
    padded = torch.nn.functional.pad(mask, (0, words(block_k) * WORD - block_k))
    place = torch.arange(WORD, dtype=torch.int32, device=mask.device)
    lanes = padded.unflatten(-1, (words(block_k), WORD)).to(torch.int32)
    # Distinct powers of two: the sum is the bitwise or, and wraps into the sign bit without overflow trouble.
    packed: Tensor = (lanes << place).sum(-1, dtype=torch.int32)
    return packed


def unpack(tiles: Tensor, block_k: int) -> Tensor:
    """int32 ``[..., W]`` -> bool ``[..., block_k]``."""
    place = torch.arange(WORD, dtype=torch.int32, device=tiles.device)
    lanes: Tensor = (tiles.unsqueeze(-1) >> place) & 1
    return lanes.bool().flatten(-2)[..., :block_k]


def transpose(tiles: Tensor, block_k: int) -> Tensor:
    """int32 ``[P, block_q, ceil(block_k/32)]`` -> ``[P, block_k, ceil(block_q/32)]``: rows and keys
    exchanged.
    """
    return pack(unpack(tiles, block_k).transpose(-1, -2))


def below(end: Tensor, n_words: int) -> Tensor:
    """int32 words whose bits ``[0, end)`` are set: ``end [...]`` int64 in bits -> ``[..., n_words]`` (int64,
    low 32 bits used).
    """
    first = torch.arange(n_words, device=end.device) * WORD
    reach = (end.unsqueeze(-1) - first).clamp_(0, WORD)
    return (torch.ones_like(reach) << reach) - 1


def to_int32(low_bits: Tensor) -> Tensor:
    """Keep the low 32 bits of an int64 tensor as the int32 with the same bit pattern."""
    return torch.where(low_bits > 0x7FFFFFFF, low_bits - (1 << 32), low_bits).to(torch.int32)


def count(tiles: Tensor) -> Tensor:
    """Number of set bits of each tile: int32 ``[P, block_q, W]`` -> int64 ``[P]``."""
    table = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.uint8, device=tiles.device)
    return table[tiles.contiguous().view(torch.uint8).flatten(1).int()].sum(1, dtype=torch.int64)


def whole_tile(rows: Tensor, keys: Tensor, block_q: int, block_k: int) -> Tensor:
    """The tile of a block whose first ``rows`` rows and first ``keys`` keys exist and are all kept.

    rows, keys: int64 ``[P]``. Returns int32 ``[P, block_q, W]``.
    """
    line = to_int32(below(keys, words(block_k)))
    exists = torch.arange(block_q, device=rows.device) < rows[:, None]
    return torch.where(exists[..., None], line[:, None, :], 0)


def share(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Drop repeated tiles: returns ``(pool [P', block_q, W], slot int64 [P])`` with ``pool[slot] == tiles``.

    Tiles are grouped by a 64-bit hash, and the grouping is then checked exactly, because sorting whole tiles
    is what makes ``torch.unique(dim=0)`` slow; two different tiles with one hash only cost the slow route.
    """
    if tiles.shape[0] == 0:
        return tiles, torch.zeros(0, dtype=torch.int64, device=tiles.device)
    flat = tiles.reshape(tiles.shape[0], -1)
    weights = (
        torch.empty(flat.shape[1], dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0x5EED))
        | 1
    )
    weights = weights.to(tiles.device)
    step = max(1, (1 << 24) // max(1, flat.shape[1]))
    digest = torch.cat([(part.long() * weights).sum(1) for part in flat.split(step)])
    kinds, slot = torch.unique(digest, return_inverse=True)
    first = torch.full((kinds.numel(),), tiles.shape[0], dtype=torch.int64, device=tiles.device)
    first.scatter_reduce_(0, slot, torch.arange(tiles.shape[0], device=tiles.device), "amin")
    order = first.argsort()  # slots numbered by first appearance, so that equal layouts get equal pools
    slot = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))[slot]
    pool = tiles[first[order]]
    if all(torch.equal(pool[s], t) for s, t in zip(slot.split(step), tiles.split(step), strict=False)):
        return pool, slot
    pool, slot = torch.unique(flat, dim=0, return_inverse=True)
    return pool.reshape(-1, *tiles.shape[1:]), slot
