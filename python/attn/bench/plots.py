"""Pictures of results.json: speed over length and density, memory over length, error over cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

Point = tuple[float, float]
_MARKERS = "osD^vP*X<>hd"
_COLOURS = (*(f"C{i}" for i in range(10)), "navy", "goldenrod", "black", "crimson")


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
    order = tuple(dict.fromkeys(r["kernel"] for c in record["cases"] for r in c["results"]))
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
            scales = ("log2" if x == "length" else "linear", "symlog" if "memory" in y_label else "linear")
            axes = Axes(label, y_label, title, *scales, order=order)
            levels = record["peaks_gflops"] if field == "gflops" else {}
            written.append(
                panels(folder / f"{name}.png", series, axes, {d: peak * factor for d, peak in levels.items()})
            )
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
        axes = Axes(*labels, "log10", "log", joined=False, from_zero=False, order=order)
        written.append(panels(folder / "error_over_cost.png", points, axes))
    return written


def _dtypes(cases: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(c["dtype"] for c in cases))


@dataclass(frozen=True)
class Axes:
    """How a picture's panels are drawn: labels, scales ("linear", "log2", "log10"; "linear", "log",
    "symlog"), whether the points of a line are joined, and the names whose looks all pictures share."""

    x: str
    y: str
    title: str
    x_scale: str = "linear"
    y_scale: str = "linear"
    joined: bool = True
    from_zero: bool = True
    order: tuple[str, ...] = ()


def panels(
    path: Path,
    series: dict[str, dict[str, list[Point]]],
    axes: Axes,
    levels: Mapping[str, float] = MappingProxyType({}),
) -> Path:
    """Draws one panel for every entry, each with its lines by name, and one legend; ``levels`` holds the
    height of a panel's dashed line, the machine's peak. Needs matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    columns = 2 if len(series) == 4 else len(series)
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(5.2 * max(columns, 1.4) + 2.2, 4.4 * rows + 0.2), layout="constrained")
    names = list(dict.fromkeys([*axes.order, *(name for lines in series.values() for name in lines)]))
    drawn = figure.subplots(rows, columns, squeeze=False)
    for axis, (title, lines) in zip(drawn.flat, series.items(), strict=True):
        for name, points in lines.items():
            index = names.index(name)
            ours = name.startswith("attn")
            axis.plot(
                *zip(*points, strict=True),
                linestyle="-" if axes.joined else "none",
                marker=_MARKERS[index % len(_MARKERS)],
                color=_COLOURS[index % len(_COLOURS)],
                linewidth=2.2 if ours else 1.2,
                markersize=5 if axes.joined else 8,
                markerfacecolor=None if ours else "white",
                label=name,
            )
        if title in levels:
            axis.axhline(levels[title], linestyle="--", color="0.4", label="matrix product")
        axis.set(title=title, xlabel=axes.x)
        axis.set_yscale(axes.y_scale)
        if axes.y_scale != "linear":
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        heights = [y for points in lines.values() for _, y in points]
        if axes.y_scale == "log" and max(heights) < 1000 * min(heights):
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_locator(NullLocator())
        if axes.from_zero:
            axis.set_ylim(bottom=0)
        if axes.x_scale == "log10":
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
        elif axes.x_scale == "log2":
            axis.set_xscale("log", base=2)
            ticks = sorted({x for points in lines.values() for x, _ in points})
            axis.set_xticks(ticks, [f"{int(x):,}" for x in ticks])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in drawn[:, 0]:
        axis.set_ylabel(axes.y)
    handles = {h.get_label(): h for axis in drawn.flat for h in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=9)
    figure.suptitle(axes.title)
    figure.savefig(path, dpi=120)
    return path
