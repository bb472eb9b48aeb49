"""docs_pictures.py: draw the pictures of docs/images (needs matplotlib).

Sequence lengths of the pictures that show every token are 512, the largest that viz draws exactly.
"""

from __future__ import annotations

from pathlib import Path

import torch

import attn
from attn import patterns
from attn.layout.plot import raster

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
BOUNDS = [0, 100, 260, 512]


def all_patterns() -> dict[str, attn.BlockLayout]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"block_q": 16, "block_k": 16}
    return {
        "sliding_window": patterns.sliding_window(512, 512, window=60),
        "sink_window": patterns.sink_window(512, 512, window=127, sink_tokens=32),
        "global_window": patterns.global_window(512, 512, window=40, global_tokens=48),
        "bigbird": patterns.bigbird(
            512, 512, window=24, global_tokens=32, random_blocks=2, generator=generator, **sizes
        ),
        "document, causal": patterns.document(BOUNDS),
        "document": patterns.document(BOUNDS, causal=False),
        "prefix_lm": patterns.prefix_lm(BOUNDS, prefix_lengths=[60, 0, 120]),
        "block_causal_document": patterns.block_causal_document(BOUNDS, block_size=48),
        "shared_question": patterns.shared_question(BOUNDS),
        "causal_blockwise": patterns.causal_blockwise(BOUNDS),
        'halo_2d, "raster"': patterns.halo_2d(16, 32, block=8, halo=2),
        'halo_2d, "block"': patterns.halo_2d(16, 32, block=8, halo=2, order="block"),
    }


def pattern_sheet(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    for axis, (name, layout) in zip(figure.subplots(3, 4).flatten(), all_patterns().items(), strict=True):
        axis.imshow(raster(layout).numpy(), cmap="Greys", vmin=0, vmax=1.2, extent=(0, 512, 512, 0))
        axis.set_title(name, fontsize=10)
        axis.set(xticks=[0, 256, 512], yticks=[0, 256, 512])
        axis.tick_params(labelsize=7)
    figure.supxlabel("key", fontsize=10)
    figure.supylabel("query", fontsize=10)
    figure.savefig(path, dpi=80)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    pattern_sheet(OUT / "patterns.png")
    patterns.sink_window(64, 64, window=15, sink_tokens=4, block_q=16, block_k=16).plot(OUT / "layout_64.png")
    attn.viz.plot_schedule(
        131072, 131072, OUT / "schedule_128k.png", causal=True, window=(8191, 0), sink_tokens=2048
    )
    attn.viz.plot_s2(4096, 4096, OUT / "s2.png", num_heads=4, local_blocks=4, vert_stride=8, head_step=2)
    attn.viz.plot_selection(topics(), 8192, 8192, OUT / "selection.png")


def topics() -> attn.HipSelection:
    """A text whose topic changes every few hundred tokens: keys of a topic resemble each other."""
    generator = torch.Generator().manual_seed(0)
    topic = torch.randint(6, (8192 // 256,), generator=generator).repeat_interleave(256)
    centre = torch.randn(2, 6, 32, generator=generator)[:, topic]
    q, k = (centre + torch.randn(1, 2, 8192, 32, generator=generator) for _ in range(2))
    return attn.hip_select(q, k, mask_k=1024)


if __name__ == "__main__":
    main()
