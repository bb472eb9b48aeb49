"""Pictures of layouts: token-exact when they are small, averaged to a readable raster when they are large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import bits
from .entries import WHOLE

if TYPE_CHECKING:
    from .block_layout import BlockLayout

MAX_CELLS = 512


def _cell(length: int, block: int) -> int:
    """Tokens per raster cell: a divisor or a multiple of the block, so that no cell straddles a border."""
    for cell in range(1, block + 1):
        if block % cell == 0 and -(-length // cell) <= MAX_CELLS:
            return cell
    return block * -(-length // (block * MAX_CELLS))


def raster(layout: BlockLayout, batch: int = 0, head: int = 0) -> Tensor:
    """Kept fraction of one head on a raster of at most 512 x 512 cells (float32, each cell a rectangle of
    tokens).

    A layout of at most 512 tokens a side is drawn exactly. Costs O(kept blocks), whatever the length.
    """
    grid, kept = layout._grid(), layout._entries()
    cell_q, cell_k = _cell(layout.q_len, layout.block_q), _cell(layout.kv_len, layout.block_k)
    sub_q, sub_k = (
        max(1, layout.block_q // cell_q),
        max(1, layout.block_k // cell_k),
    )  # cells a block is divided into
    high, wide = -(-layout.q_len // cell_q), -(-layout.kv_len // cell_k)
    group, row, col = grid.split(kept.key)
    mine = group == batch * grid.heads + head
    row, col, slot = row[mine], col[mine], kept.slot[mine]
    # Kept tokens per sub-cell of every tile, then of whole blocks (clipped at the ends of the sequences).
    tiles = bits.unpack(kept.tiles, layout.block_k).float()
    per_tile = (
        tiles.unflatten(1, (sub_q, -1)).unflatten(3, (sub_k, -1)).sum((2, 4))
        if tiles.shape[0]
        else tiles.new_zeros(1, sub_q, sub_k)
    )
    step_q, step_k = layout.block_q // sub_q, layout.block_k // sub_k
    rows = (grid.rows_in(row)[:, None] - torch.arange(sub_q, device=row.device) * step_q).clamp(0, step_q)
    keys = (grid.keys_in(col)[:, None] - torch.arange(sub_k, device=row.device) * step_k).clamp(0, step_k)
    whole = (rows[:, :, None] * keys[:, None, :]).float()
    tokens = torch.where((slot == WHOLE)[:, None, None], whole, per_tile[slot.clamp(min=0)])
    y = (row[:, None] * layout.block_q + torch.arange(sub_q, device=row.device) * step_q) // cell_q
    x = (col[:, None] * layout.block_k + torch.arange(sub_k, device=row.device) * step_k) // cell_k
    at = y[:, :, None] * wide + x[:, None, :]
    inside = (y < high)[:, :, None] & (x < wide)[:, None, :]
    image = torch.zeros(high * wide, device=row.device).index_add_(0, at[inside], tokens[inside])
    area_q = (layout.q_len - torch.arange(high, device=row.device) * cell_q).clamp(max=cell_q)
    area_k = (layout.kv_len - torch.arange(wide, device=row.device) * cell_k).clamp(max=cell_k)
    return (image.reshape(high, wide) / (area_q[:, None] * area_k[None, :])).cpu()


def panels(shown: int, what: str, *, beside: float = 0.6) -> tuple[Any, list[Any]]:
    """A matplotlib figure with a square for each of `shown` heads, and the axes of its grid.

    A raster of 512 cells gets about that many pixels. `beside`: inches left over for what stands beside them.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plotting {what} needs matplotlib: pip install 'attn[viz]'") from error
    columns = min(max(shown, 1), 4)
    lines = max(1, -(-shown // columns))
    figure = Figure(figsize=(beside + 4 * columns, 0.8 + 4 * lines), layout="constrained")
    return figure, list(figure.subplots(lines, columns, squeeze=False).flatten())


def label(axis: Any, title: str, q_len: int, kv_len: int) -> None:
    """Title and axes of one panel: queries downwards, marks at the quarters, where blocks begin."""
    axis.set(xlim=(0, kv_len), ylim=(q_len, 0))
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("key", fontsize=8)
    axis.set_ylabel("query", fontsize=8)
    for one, length in ((axis.xaxis, kv_len), (axis.yaxis, q_len)):
        marks = sorted({length * quarter // 4 for quarter in range(5)})
        one.set_ticks(marks, [f"{mark:,}" for mark in marks], fontsize=7)


def plot(layout: BlockLayout, path: Any = None, *, batch: int = 0, max_heads: int = 8) -> Any:
    """Draw the heads of a layout side by side: queries downwards, keys to the right, dark = kept.

    Up to 512 tokens a side every token is a pixel and block borders are drawn; longer sequences are averaged
    over rectangles of tokens, on a scale (0.2 + 0.8 times the square root) on which thin stripes and single
    blocks stay visible.

    Args:
        path: file to write (format by suffix), or None to leave showing or saving to the caller.
        batch: which batch of a layout with several.
        max_heads: heads drawn at most.

    Returns:
        The matplotlib figure.
    """
    if not 0 <= batch < layout.batch:
        raise ValueError(f"batch must be in [0, {layout.batch}), got {batch}")
    shown = min(layout.heads, max_heads)
    figure, axes = panels(shown, "a layout")
    for head, axis in enumerate(axes):
        if head >= shown or 0 in (layout.q_len, layout.kv_len):
            axis.axis("off")
            continue
        kept = raster(layout, batch, head)
        axis.imshow(
            torch.where(kept > 0, 0.2 + 0.8 * kept.sqrt(), kept).numpy(),
            cmap="Greys",
            vmin=0,
            vmax=1.15,  # so that the borders of blocks can be seen in what is kept
            extent=(0, layout.kv_len, layout.q_len, 0),
            aspect="auto",
            interpolation="antialiased",
        )
        label(axis, f"head {head}" if layout.heads > 1 else "all heads", layout.q_len, layout.kv_len)
        if max(layout.q_len, layout.kv_len) <= MAX_CELLS:
            for at in range(0, layout.q_len, layout.block_q):
                axis.axhline(at, color="tab:blue", linewidth=0.4)
            for at in range(0, layout.kv_len, layout.block_k):
                axis.axvline(at, color="tab:blue", linewidth=0.4)
    more = f", first {shown} of {layout.heads} heads" if shown < layout.heads else ""
    figure.suptitle(
        f"{layout.q_len:,} x {layout.kv_len:,} tokens{more}\n"
        f"blocks {layout.block_q} x {layout.block_k}, density {layout.density():.3g}",
        fontsize=10,
    )
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
