"""A picture of what HiP selected, beside the attention it approximates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..selection import HipSelection

CELLS = 256  # cells of the maps along either axis


def kept_map(selection: HipSelection, head: int, tokens: int, block_q: int, block_k: int) -> Tensor:
    """``[CELLS, CELLS]``: share of a cell's keys that the query blocks of the cell list."""
    rows = selection.index.shape[2]
    cells = torch.zeros(CELLS, CELLS)
    size = tokens / CELLS
    for row in range(rows):
        n = int(selection.count[0, head, row])
        keys = selection.index[0, head, row, :n].float()
        y = min(CELLS - 1, int(row * block_q / size))
        cells[y].index_add_(0, (keys / size).long().clamp(max=CELLS - 1), torch.full((n,), float(block_k)))
    blocks_in_cell = torch.bincount(
        (torch.arange(rows) * block_q / size).long().clamp(max=CELLS - 1), minlength=CELLS
    ).clamp(min=1)
    return (cells / size / blocks_in_cell[:, None]).clamp(max=1)


def weight_map(q: Tensor, k: Tensor, head: int) -> Tensor:
    """``[CELLS, CELLS]``: share of its attention that one row in each cell gives to each cell, exactly."""
    tokens = q.shape[2]
    rows = ((torch.arange(CELLS) + 0.5) * tokens / CELLS).long()
    scores = q[0, head, rows].float() @ k[0, head].float().T * q.shape[-1] ** -0.5
    scores.masked_fill_(torch.arange(tokens) > rows[:, None], float("-inf"))
    cell = (torch.arange(tokens) * CELLS // tokens).clamp(max=CELLS - 1)
    return torch.zeros(CELLS, CELLS).index_add_(1, cell, scores.softmax(-1))


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
    later = torch.ones(CELLS, CELLS).triu(1).bool()
    panels = (
        (
            "where the attention is (exact, one row a line)",
            weight_map(q, k, head),
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
