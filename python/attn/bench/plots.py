"""Pictures of results.json: speed over length and density, memory over length, error over cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Point = tuple[float, float]
_MARKERS = "osD^vP*X<>"


def _measured(case: dict[str, Any], field: str) -> list[tuple[str, float]]:
    return [(r["kernel"], r[field]) for r in case["results"] if r.get(field) is not None]


def _lines(cases: list[dict[str, Any]], x: str, field: str, factor: float) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for case in sorted(cases, key=lambda c: c[x]):
        for kernel, value in _measured(case, field):
            lines.setdefault(kernel, []).append((case[x], value * factor))
    return lines


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures that the cases allow and returns their paths. Needs matplotlib."""
    forward = [c for c in record["cases"] if c["stage"] == "forward"]
    causal = [c for c in forward if c["mask"] == "causal"]
    blocks = [c for c in forward if c["mask"].startswith("block_sparse")]
    lengths = {c["length"] for c in blocks}
    middle = max(lengths, key=lambda n: sum(c["length"] == n for c in blocks), default=0)
    dense = [c for c in blocks if c["length"] == middle]
    written = []
    tera = ("TFLOP/s over the mask", "gflops", 1e-3)
    for name, cases, x, label, (y_label, field, factor), title in (
        ("speed_over_length", causal, "length", "tokens", tera, "Causal attention, forward"),
        (
            "speed_over_density",
            dense,
            "density",
            "visible share",
            tera,
            f"Random blocks, {middle} tokens, forward",
        ),
        (
            "memory_over_length",
            causal,
            "length",
            "tokens",
            ("extra memory of a call, MiB", "extra_bytes", 2.0**-20),
            "Causal attention, forward",
        ),
    ):
        series = {d: _lines([c for c in cases if c["dtype"] == d], x, field, factor) for d in _dtypes(cases)}
        if series:
            logarithmic = x == "length"
            written.append(_draw(folder / f"{name}.png", series, (label, y_label, title), logarithmic, "-"))
    if causal:
        longest = max(c["length"] for c in causal)
        points: dict[str, dict[str, list[Point]]] = {}
        for case in causal:
            if case["length"] == longest:
                points[case["dtype"]] = {
                    r["kernel"]: [(r["ms"], r["error"])]
                    for r in case["results"]
                    if "error" in r and "ms" in r
                }
        title = f"Causal attention, {longest} tokens, forward, random inputs"
        labels = ("milliseconds", "error of the output against float64", title)
        written.append(_draw(folder / "error_over_cost.png", points, labels, True, "", error=True))
    return written


def _dtypes(cases: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(c["dtype"] for c in cases))


def _draw(
    path: Path,
    panels: dict[str, dict[str, list[Point]]],
    labels: tuple[str, str, str],
    logarithmic: bool,
    line: str,
    error: bool = False,
) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    figure = Figure(figsize=(5.2 * len(panels) + 2.2, 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (dtype, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            index = names.index(name)
            ours = name.startswith("attn")
            axis.plot(
                *zip(*points, strict=True),
                linestyle=line or "none",
                marker=_MARKERS[index % len(_MARKERS)],
                color=f"C{index % 10}",
                linewidth=2.2 if ours else 1.2,
                markersize=8 if error else 5,
                markerfacecolor=None if ours else "white",
                label=name,
            )
        axis.set(title=dtype, xlabel=labels[0])
        if logarithmic:
            axis.set_xscale("log", base=10 if error else 2)
        if error or "memory" in labels[1]:
            axis.set_yscale("log" if error else "symlog")
        if not error:
            axis.set_ylim(bottom=0)
        if error:
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_locator(NullLocator())
        elif logarithmic:
            ticks = sorted({x for points in lines.values() for x, _ in points})
            axis.set_xticks(ticks, [f"{int(x):,}" for x in ticks])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(labels[1])
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=9)
    figure.suptitle(labels[2])
    figure.savefig(path, dpi=120)
    return path
