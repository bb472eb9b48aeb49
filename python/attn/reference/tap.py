"""Token-aware average pooling in float64 (TAP, arXiv 2303.11126)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tap_pool(
    x: Tensor, weights: Tensor, *, height: int, width: int, dilations: Sequence[int] = (0, 1, 2, 3)
) -> Tensor:
    """Oracle of :func:`attn.tap_pool`.

    ``out_n = sum_i weights[n, i] P_i(x)_n`` with P_i the sum over the 3 x 3 neighbours at distance
    ``dilations[i]`` that lie in the image, divided by 9.
    """
    image = x.to(torch.float64).unflatten(1, (height, width))
    out = torch.zeros_like(image)
    rows, columns = torch.arange(height), torch.arange(width)
    for i, d in enumerate(dilations):
        pooled = torch.zeros_like(image)
        for dy in (-d, 0, d):
            for dx in (-d, 0, d):
                y, z = rows + dy, columns + dx
                inside = ((y >= 0) & (y < height))[:, None, None] & ((z >= 0) & (z < width))[:, None]
                shifted = image[:, y.clamp(0, height - 1)][:, :, z.clamp(0, width - 1)]
                pooled = pooled + torch.where(inside, shifted, 0.0)
        out = out + weights.to(torch.float64)[..., i].unflatten(1, (height, width))[..., None] * pooled / 9
    return out.flatten(1, 2)
