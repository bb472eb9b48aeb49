"""A picture of what HiP selected, beside the attention it approximates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..selection import HipSelection
from .encoder import WINDOW

MOST_CELLS = 64  # of a map along either axis
Point = tuple[float, float, str]  # keys a row reads, share of its attention on them, name


def cell_size(tokens: int, block_q: int) -> int:
    """Tokens of a cell: whole blocks of queries, and of a long text whole windows of the encoder, or its
    positions inside the window would beat against the cells and draw a pattern of their own."""
    unit = WINDOW if tokens >= MOST_CELLS // 4 * WINDOW else block_q
    return -(-tokens // (MOST_CELLS * unit)) * unit


def kept_map(
    selection: HipSelection, head: int, tokens: int, block_q: int, block_k: int, window: int, sink: int
) -> Tensor:
    """``[cells, cells]``: of the keys in a cell, the share that a block of queries reads, averaged over the
    blocks of the cell."""
    size = cell_size(tokens, block_q)
    cells, blocks = -(-tokens // size), selection.index.shape[2]
    kept, row_blocks = torch.zeros(cells, cells), torch.zeros(cells, 1)
    for block in range(blocks):
        last = min((block + 1) * block_q, tokens) - 1
        seen = torch.zeros(tokens + block_k, dtype=torch.bool)
        listed = selection.index[0, head, block, : int(selection.count[0, head, block])].long()
        for offset in range(block_k):
            seen[listed + offset] = True
        seen[:sink] = True
        seen[max(0, last + 1 - window) :] = True
        seen[last + 1 :] = False
        row = block * block_q // size
        row_blocks[row] += 1
        kept[row].index_add_(0, torch.arange(tokens) // size, seen[:tokens].float())
    return kept / size / row_blocks


def weight_map(q: Tensor, k: Tensor, head: int, block_q: int) -> Tensor:
    """``[cells, cells]``: exact share of its attention that a row gives to each cell, averaged over 8 rows of
    each line of cells."""
    tokens = q.shape[2]
    size = cell_size(tokens, block_q)
    cells, keys = -(-tokens // size), torch.arange(tokens)
    shares = torch.zeros(cells, cells)
    for row in range(cells):
        begin, end = row * size, min((row + 1) * size, tokens)
        rows = begin + ((torch.arange(8) + 0.5) * (end - begin) / 8).long()
        scores = q[0, head, rows].float() @ k[0, head].float().T * q.shape[-1] ** -0.5
        weights = scores.masked_fill_(keys > rows[:, None], float("-inf")).softmax(-1).mean(0)
        shares[row].index_add_(0, keys // size, weights)
    return shares


def draw(
    path: str,
    maps: tuple[Tensor, Tensor],
    tokens: int,
    cell: int,
    best: Tensor,
    points: list[Point],
    titles: tuple[str, str],
) -> None:
    """Writes the PNG: the two maps, and how much attention the keys read hold. ``best [n]`` is the share of
    the heaviest 1, 2, ... keys of a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    figure, axes = pyplot.subplots(
        1, 3, figsize=(17, 5.6), layout="constrained", gridspec_kw={"width_ratios": (1, 1, 0.9)}
    )
    side = maps[0].shape[0] * cell
    later = torch.ones_like(maps[0]).triu(1).bool()
    texts = (
        ("Where the attention is\n(exact softmax)", "share of a query's attention in the cell"),
        ("Which keys HiP reads\n(chosen, first tokens and window)", "share of the cell's keys that are read"),
    )
    for axis, (name, label), values in zip(axes, texts, maps, strict=False):
        shown = values.clamp(min=1e-3).masked_fill(later, float("nan"))
        image = axis.imshow(
            shown,
            extent=(0, side, side, 0),
            norm=LogNorm(vmin=1e-3, vmax=1),
            cmap="magma",
            interpolation="nearest",
        )
        axis.set(title=name, xlabel="key: position in the text", facecolor="0.92")
        axis.set(xlim=(0, tokens), ylim=(tokens, 0))
        axis.text(0.62, 0.86, "the future:\nnot visible", transform=axis.transAxes, color="0.45")
        figure.colorbar(image, ax=axis, label=label, shrink=0.85)
    axes[0].set_ylabel("query: position in the text")
    chart = axes[2]
    chart.plot(
        range(1, len(best) + 1), best * 100, color="0.35", label="best possible choice of as many keys"
    )
    for (keys, share, name), marker in zip(points, "osD^v", strict=False):
        chart.plot([keys], [share * 100], marker, markersize=9, label=name, linestyle="none")
    chart.set(xscale="log", xlim=(10, None), ylim=(0, 100), title="How much attention those keys hold")
    chart.set(
        xlabel=f"keys a query reads, of up to {tokens:,}", ylabel="share of exact attention, all heads (%)"
    )
    chart.grid(alpha=0.3)
    chart.legend(loc="upper left", fontsize=9)
    figure.suptitle(titles[0] + "\n" + titles[1])
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def spread_head(q: Tensor, k: Tensor) -> int:
    """The head whose attention reaches furthest: the one that a window would serve worst."""
    tokens = q.shape[2]
    rows = ((torch.arange(16) + 0.5) * tokens / 16).long()
    distance = rows[:, None] - torch.arange(tokens)
    reach = []
    for head in range(q.shape[1]):
        scores = q[0, head, rows].float() @ k[0, head].float().T * q.shape[-1] ** -0.5
        weights = scores.masked_fill(distance < 0, float("-inf")).softmax(-1)
        top = weights.topk(min(64, tokens)).values.sum(-1)  # far and sharp: something there to find
        reach.append(float(((weights * (distance > 1024)).sum(-1) * top).mean()))
    return int(torch.tensor(reach).argmax())
