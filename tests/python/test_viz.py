"""Rasters against counting pair by pair; pictures are written at 64 and at 128k tokens."""

from __future__ import annotations

import pytest
import torch

import attn

PAD = 2**31 - 1


def test_selection_raster_counts_each_key_once():
    index = torch.tensor([[[[0, 2, 3, PAD], [6, PAD, PAD, PAD]]]], dtype=torch.int32)  # 2..3 and 3..4 overlap
    selection = attn.HipSelection(index, torch.tensor([[[3, 1]]], dtype=torch.int32))
    values, cell_q, cell_k = attn.viz.selection_raster(selection, 16, 7, block_size_q=8)
    assert (cell_q, cell_k) == (8, 1)
    assert values.tolist() == [[1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1]]


def test_selection_raster_of_long_sequences_is_an_average(generator):
    length, block_q, block_k = 1500, 4, 2
    blocks = length // block_q
    index = (torch.rand(1, 1, blocks, 20, generator=generator) * (length // 2)).int() * 2
    count = torch.randint(0, 21, (1, 1, blocks), generator=generator, dtype=torch.int32)
    selection = attn.HipSelection(index.sort(-1).values, count)
    sizes = {"block_size_q": block_q, "block_size_k": block_k}
    values, cell_q, cell_k = attn.viz.selection_raster(selection, length, length, **sizes)
    kept = torch.zeros(blocks, length)
    for row in range(blocks):
        for first in selection.index[0, 0, row, : count[0, 0, row]].tolist():
            kept[row, first : first + block_k] = 1
    per_cell = cell_q // block_q
    for y in range(values.shape[0]):
        for x in range(0, values.shape[1], 7):
            part = kept[y * per_cell : (y + 1) * per_cell, x * cell_k : (x + 1) * cell_k]
            assert float(values[y, x]) == pytest.approx(float(part.mean()))


@pytest.mark.parametrize("length", [64, 131072])
def test_pictures(tmp_path, length, generator):
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `viz`)")
    blocks = -(-length // 64)
    index = (torch.rand(1, 2, blocks, 16, generator=generator) * length).int().sort(-1).values
    selection = attn.HipSelection(index, torch.full((1, 2, blocks), 16, dtype=torch.int32))
    attn.viz.plot_selection(selection, length, length, tmp_path / "a.png")
    attn.viz.plot_schedule(length, length, tmp_path / "b.png", causal=True, window=(length // 8, 0))
    attn.viz.plot_s2(length, length, tmp_path / "c.png", num_heads=2)
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_schedule_with_a_layout(monkeypatch):
    drawn = []
    monkeypatch.setattr(attn.viz, "plot_layout", lambda layout, path: drawn.append(layout))
    layout = attn.BlockLayout.from_mask(torch.eye(4, dtype=torch.bool), block_q=16, block_k=32)
    attn.viz.plot_schedule(64, 128, causal=True, layout=layout)
    rows, keys = torch.arange(64)[:, None], torch.arange(128)
    wanted = (rows // 16 == keys // 32) & (keys <= rows + 64)
    assert torch.equal(drawn[0].to_token_mask()[0, 0], wanted)


def test_wrong_selection():
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `viz`)")
    selection = attn.HipSelection(torch.zeros(1, 1, 2, 1).int(), torch.zeros(1, 1, 2).int())
    with pytest.raises(ValueError, match="query blocks, got 2"):
        attn.viz.plot_selection(selection, 64, 64)


def test_a_single_block_of_128k_tokens_is_visible_and_axes_are_marked():
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `viz`)")
    mask = torch.zeros(2048, 2048, dtype=torch.bool)
    mask[1500, 700] = True
    figure = attn.BlockLayout.from_mask(mask).plot()
    (axis,) = figure.axes
    shades = axis.images[0].get_array()
    assert shades.shape == (512, 512)
    assert (shades > 0).sum() == 1
    assert shades[1500 // 4, 700 // 4] >= 0.2
    marks = ["0", "32,768", "65,536", "98,304", "131,072"]
    assert [text.get_text() for text in axis.get_xticklabels()] == marks
    assert axis.get_ylim() == (131072, 0)  # queries downwards
