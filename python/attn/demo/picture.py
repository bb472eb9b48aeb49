"""A picture of what HiP selected, beside the attention it approximates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..selection import HipSelection

MOST_CELLS = 256  # of a map along either axis; a cell holds at least one block of queries


def cells_of(tokens: int, block_q: int) -> int:
    return min(MOST_CELLS, -(-tokens // block_q))


def kept_map(selection: HipSelection, head: int, tokens: int, block_q: int, block_k: int) -> Tensor:
    """``[cells, cells]``: share of a cell's keys that the query blocks of the cell list."""
    cells, blocks = cells_of(tokens, block_q), selection.index.shape[2]
    size = tokens / cells
    cell_of_block = (torch.arange(blocks) * block_q / size).long().clamp(max=cells - 1)
    kept = torch.zeros(cells, cells)
    for block, row in enumerate(cell_of_block.tolist()):
        n = int(selection.count[0, head, block])
        columns = (selection.index[0, head, block, :n] / size).long().clamp(max=cells - 1)
        kept[row].index_add_(0, columns, torch.full((n,), float(block_k)))
    blocks_of_cell = torch.bincount(cell_of_block, minlength=cells).clamp(min=1)
    return (kept / size / blocks_of_cell[:, None]).clamp(max=1)


def weight_map(q: Tensor, k: Tensor, head: int, block_q: int) -> Tensor:
    """``[cells, cells]``: share of its attention that one row in each cell gives to each cell, exactly."""
    tokens = q.shape[2]
    cells = cells_of(tokens, block_q)
    rows = ((torch.arange(cells) + 0.5) * tokens / cells).long()
    scores = q[0, head, rows].float() @ k[0, head].float().T * q.shape[-1] ** -0.5
    scores.masked_fill_(torch.arange(tokens) > rows[:, None], float("-inf"))
    cell = (torch.arange(tokens) * cells // tokens).clamp(max=cells - 1)
    return torch.zeros(cells, cells).index_add_(1, cell, scores.softmax(-1))


def draw(
    path: str,
    q: Tensor,
    k: Tensor,
    selection: HipSelection,
    head: int,
    block_q: int,
    block_k: int,
    title: str,
) -> None:
    """Writes the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    tokens = q.shape[2]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 6.2), layout="constrained", sharey=True)
    extent = (0, tokens, tokens, 0)
    cells = cells_of(tokens, block_q)
    later = torch.ones(cells, cells).triu(1).bool()
    panels = (
        (
            "where the attention is (exact, one row a line)",
            weight_map(q, k, head, block_q),
            "share of the row's attention",
        ),
        (
            "what HiP selected (sinks and window come on top)",
            kept_map(selection, head, tokens, block_q, block_k),
            "share of keys kept",
        ),
    )
    for axis, (name, values, label), low in zip(axes, panels, (1e-5, 1e-3), strict=True):
        shown = values.clamp(min=low).masked_fill(later, float("nan"))
        image = axis.imshow(
            shown, extent=extent, norm=LogNorm(vmin=low, vmax=1), cmap="magma", interpolation="nearest"
        )
        axis.set_title(name)
        axis.set_xlabel("key (token)")
        axis.set_facecolor("0.92")
        figure.colorbar(image, ax=axis, label=label, shrink=0.85)
    axes[0].set_ylabel("query (token)")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
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
