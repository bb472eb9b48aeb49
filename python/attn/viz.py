"""Pictures of which keys each query sees: layouts, the patterns of mechanisms head by head, HiP's selections.

Everything is drawn on a raster of at most 512 x 512 cells at a cost of O(kept blocks), so 128k tokens are no
problem. Needs matplotlib (``pip install 'attn[viz]'``); importing this module doesn't. Functions return the
matplotlib figure and write it to ``path`` if one is given (format by suffix).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .layout import BlockLayout
from .layout.plot import label, panels
from .layout.plot import plot as plot_layout
from .patterns import sink_window, strided
from .selection import HipSelection

__all__ = ["plot_layout", "plot_s2", "plot_schedule", "plot_selection", "selection_raster"]

MAX_CELLS = 256


def plot_schedule(
    q_len: int,
    kv_len: int,
    path: Any = None,
    *,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    sink_tokens: int = 0,
    layout: BlockLayout | None = None,
) -> Any:
    """What :func:`attn.attention` visits for these flags, which mean the same there."""
    flags = sink_window(
        q_len,
        kv_len,
        window=(-1, -1) if window is None else window,
        sink_tokens=sink_tokens,
        causal=causal,
        block_q=64 if layout is None else layout.block_q,
        block_k=64 if layout is None else layout.block_k,
    )
    if layout is not None:
        flags = layout & flags
    return plot_layout(flags, path)


def plot_s2(
    q_len: int, kv_len: int, path: Any = None, *, num_heads: int, max_heads: int = 8, **options: Any
) -> Any:
    """The pattern of each head of :func:`attn.s2_attention`; further arguments are its options."""
    return plot_layout(strided(q_len, kv_len, num_heads=num_heads, **options), path, max_heads=max_heads)


def selection_raster(
    selection: HipSelection,
    q_len: int,
    kv_len: int,
    *,
    batch: int = 0,
    head: int = 0,
    block_size_q: int = 64,
    block_size_k: int = 2,
) -> tuple[Tensor, int, int]:
    """Share of the (query block, key) pairs of each cell that are selected.

    Returns:
        float32 ``[rows, columns]``, at most 256 x 256, and the tokens of a cell along queries and keys.
        A cell holds whole query blocks, and whole key blocks or single tokens. Repeated entries count once.
    """
    index, count = selection.index[batch, head].cpu().long(), selection.count[batch, head].cpu()
    cell_q = block_size_q * -(-q_len // (block_size_q * MAX_CELLS))
    cell_k = -(-kv_len // MAX_CELLS)
    cell_k = -(-cell_k // block_size_k) * block_size_k if cell_k > 1 else 1
    rows, columns = -(-q_len // cell_q), -(-kv_len // cell_k)
    row = torch.arange(index.shape[0])[:, None].expand_as(index)
    used = torch.arange(index.shape[1]) < count[:, None]
    row, first = row[used], index[used]
    keys = (first[:, None] + torch.arange(block_size_k)).flatten()
    row = row.repeat_interleave(block_size_k)
    pairs = torch.unique((row * kv_len + keys)[keys < kv_len])  # blocks may repeat or overlap
    cell = (pairs // kv_len * block_size_q // cell_q) * columns + pairs % kv_len // cell_k
    chosen = torch.bincount(cell, minlength=rows * columns).float().reshape(rows, columns)
    blocks = torch.bincount(torch.arange(index.shape[0]) * block_size_q // cell_q, minlength=rows)
    wide = (kv_len - torch.arange(columns) * cell_k).clamp(max=cell_k)
    return chosen / (blocks[:, None] * wide), cell_q, cell_k


def plot_selection(
    selection: HipSelection,
    q_len: int,
    kv_len: int,
    path: Any = None,
    *,
    batch: int = 0,
    max_heads: int = 8,
    block_size_q: int = 64,
    block_size_k: int = 2,
) -> Any:
    """Heat map per head of what :func:`attn.hip_select` chose (sinks and the window, which HiP reads besides,
    are not part of a selection). Colour: share of a cell's keys that are chosen, logarithmic.

    Args:
        q_len, kv_len, block_size_q, block_size_k: those that the selection was made with.
        batch: which batch entry.
        max_heads: heads drawn at most.
    """
    batches, heads, blocks, _ = selection.index.shape
    if blocks != -(-q_len // block_size_q):
        raise ValueError(
            f"selection must have ceil(q_len / block_size_q) = {-(-q_len // block_size_q)} query blocks, "
            f"got {blocks}"
        )
    if not 0 <= batch < batches:
        raise ValueError(f"batch must be in [0, {batches}), got {batch}")
    shown = min(heads, max_heads)
    figure, axes = panels(shown, "a selection", beside=1.6)
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullLocator

    sizes = {"block_size_q": block_size_q, "block_size_k": block_size_k}
    rasters = [
        selection_raster(selection, q_len, kv_len, batch=batch, head=head, **sizes) for head in range(shown)
    ]
    positive = torch.cat([values[values > 0] for values, _, _ in rasters] or [torch.ones(1)])
    # From the power of ten below all but the emptiest cells, so that a sparse choice isn't one colour.
    least = float(positive.quantile(0.05)) if positive.numel() else 1.0
    norm = LogNorm(vmin=10.0 ** min(-1, math.floor(math.log10(least))), vmax=1)
    image = None
    for head, axis in enumerate(axes):
        if head >= shown or 0 in (q_len, kv_len):
            axis.axis("off")
            continue
        values, cell_q, cell_k = rasters[head]
        image = axis.imshow(
            values.masked_fill(values == 0, float("nan")).numpy(),
            norm=norm,
            cmap="viridis_r",
            extent=(0, values.shape[1] * cell_k, values.shape[0] * cell_q, 0),
            aspect="auto",
            interpolation="nearest",
        )
        label(axis, f"head {head}" if heads > 1 else "all heads", q_len, kv_len)
    if image is not None:
        bar = figure.colorbar(
            image,
            ax=axes,
            label="share of keys chosen",
            shrink=0.8,
            ticks=LogLocator(),
            format=lambda share, _: f"{100 * share:g} %",
        )
        bar.ax.yaxis.set_minor_locator(NullLocator())
    more = f", first {shown} of {heads} heads" if shown < heads else ""
    figure.suptitle(f"HiP's choice: {q_len:,} x {kv_len:,} tokens{more}", fontsize=10)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
