"""S2-Attention's heterogeneous strided pattern as an explicit mask (arXiv 2407.17678)."""

from __future__ import annotations

import torch
from torch import Tensor

from .attend import masked_attention


def s2_token_mask(
    q_len: int,
    kv_len: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    block_size: int = 64,
    local_blocks: int | tuple[int, int] = 8,
    vert_stride: int = 8,
    head_offset: int = 0,
    head_step: int | None = None,
    dense_heads: int = 0,
    homogeneous: bool = False,
    causal: bool = True,
) -> Tensor:
    """bool ``[1, num_heads, q_len, kv_len]``.

    Row i at position ``p = i + kv_len - q_len`` lies in block ``p // block_size``. Causal: it sees keys ``t
    <= p`` of its last ``local_blocks`` blocks and of every block j with ``(j + shift) % vert_stride == 0``,
    where kv head g has ``shift = g * head_step + head_offset``. Bidirectional: distances past the local
    blocks on either side must be multiples of the stride.
    """
    step = max(1, vert_stride // num_heads) if head_step is None else head_step
    left, right = (local_blocks, local_blocks) if isinstance(local_blocks, int) else local_blocks
    p, t = (torch.arange(q_len) + kv_len - q_len)[:, None], torch.arange(kv_len)[None, :]
    i, j = torch.div(p, block_size, rounding_mode="floor"), t // block_size
    masks = []
    for head in range(num_heads):
        g = head // (num_heads // num_kv_heads)
        shift = (0 if homogeneous else g * step) + head_offset
        if g >= num_kv_heads - dense_heads:
            kept = torch.ones(q_len, kv_len, dtype=torch.bool)
        elif causal:
            kept = ((j > i - left) & (j <= i)) | ((j + shift) % vert_stride == 0)
        else:
            before, after = (i - j - left + 1).clamp(min=0), (j - i - right + 1).clamp(min=0)
            kept = (before + after) % vert_stride == 0
        masks.append(kept & (t <= p) if causal else kept)
    return torch.stack(masks)[None]


def s2_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int = 64,
    local_blocks: int | tuple[int, int] = 8,
    vert_stride: int = 8,
    head_offset: int = 0,
    head_step: int | None = None,
    dense_heads: int = 0,
    homogeneous: bool = False,
    causal: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Oracle of :func:`attn.s2_attention`."""
    mask = s2_token_mask(
        q.shape[2],
        k.shape[2],
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        block_size=block_size,
        local_blocks=local_blocks,
        vert_stride=vert_stride,
        head_offset=head_offset,
        head_step=head_step,
        dense_heads=dense_heads,
        homogeneous=homogeneous,
        causal=causal,
    )
    out, lse = masked_attention(q, k, v, mask.to(q.device), scale=scale)
    return (out, lse) if return_lse else out
