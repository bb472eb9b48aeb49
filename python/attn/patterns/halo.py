"""Two-dimensional blocked local attention with a halo."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BlockLayout
from ..layout.check import check_sizes
from .intervals import from_ranges


def halo_2d(
    height: int,
    width: int,
    *,
    block: int,
    halo: int,
    order: str = "raster",
    block_q: int = 64,
    block_k: int = 64,
    device: torch.device | str | None = None,
) -> BlockLayout:
    """HaloNet attention on an image of ``height x width`` tokens: the image is cut into ``block x block``
    squares, and every token of a square sees the square and ``halo`` tokens around it. Nothing outside the
    image is seen.

    Args:
        block, halo: side of the square (the last ones may be cut by the border) and width of the ring around
            it, in tokens.
        order: how tokens are numbered. ``"raster"``: ``y * width + x``. ``"block"``: square by square, each
            in raster order (needs height and width divisible by ``block``); then the squares a query sees are
            contiguous and far fewer blocks are cut.

    Layout ``[1, 1, T, T]``, ``T = height * width``. HaloNet, arXiv 2103.12731.
    """
    for name, value, least in (
        ("height", height, 0),
        ("width", width, 0),
        ("block", block, 1),
        ("halo", halo, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
    tokens = height * width
    check_sizes(block_q, block_k, tokens, tokens)
    if order == "raster":
        start, end = _raster_ranges(height, width, block, halo)
    elif order == "block":
        if height % block or width % block:
            raise ValueError(
                f'order="block" needs height and width divisible by block={block}, got {height} x {width}'
            )
        start, end = _block_ranges(height, width, block, halo)
    else:
        raise ValueError(f'order must be "raster" or "block", got {order!r}')
    return from_ranges(start, end, tokens, block_q, block_k, device)


def _window(corner: Tensor, block: int, halo: int, limit: int) -> tuple[Tensor, Tensor]:
    """The part of [corner - halo, corner + block + halo) inside the image, along one axis."""
    return (corner - halo).clamp(min=0), (corner + block + halo).clamp(max=limit)


def _raster_ranges(height: int, width: int, block: int, halo: int) -> tuple[Tensor, Tensor]:
    """One range per image row of the window."""
    token = torch.arange(height * width)
    y, x = (token // width, token % width) if width else (token, token)
    left, right = _window(x // block * block, block, halo, width)
    line = y // block * block - halo + torch.arange(block + 2 * halo)[:, None]
    inside = (line >= 0) & (line < height)
    return torch.where(inside, line * width + left, 0), torch.where(inside, line * width + right, 0)


def _block_ranges(height: int, width: int, block: int, halo: int) -> tuple[Tensor, Tensor]:
    """One range per image row and neighbouring square of the window."""
    token = torch.arange(height * width)
    across = max(1, width // block)
    square = token // (block * block)
    corner_y, corner_x = square // across * block, square % across * block
    left, right = _window(corner_x, block, halo, width)
    reach = -(-halo // block)
    starts, ends = [], []
    # In the order of the keys: rows of squares, squares, lines of a square.
    for square_row in range(-reach, reach + 1):
        lines = range(max(-halo, square_row * block), min(block + halo, (square_row + 1) * block))
        for step in range(-reach, reach + 1):
            other_x = corner_x + step * block
            first, last = torch.maximum(left, other_x), torch.minimum(right, other_x + block)
            exists = (other_x >= 0) & (other_x < width) & (first < last)
            for dy in lines:
                line = corner_y + dy
                inside = exists & (line >= 0) & (line < height)
                square_of = (line // block) * across + other_x // block
                base = square_of * block * block + line % block * block - other_x
                starts.append(torch.where(inside, base + first, 0))
                ends.append(torch.where(inside, base + last, 0))
    return torch.stack(starts), torch.stack(ends)
