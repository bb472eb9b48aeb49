"""Pictures of results.json: error, perplexity and recall over cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plots import Axes, Point, panels

Panels = dict[str, dict[str, list[Point]]]


def _series(cases: list[dict[str, Any]], x: str, y: str, exact: bool) -> Panels:
    """For every case a line for every family, in percent of x where that is a share; exact attention, which
    is one point, only if asked for."""
    factor = 100.0 if x == "kept_area" else 1.0
    found: Panels = {}
    for case in cases:
        lines: dict[str, list[Point]] = {}
        for r in case["results"]:
            if y in r and (exact or r["family"] != "exact"):
                name = r["mechanism"] if r["family"] == "exact" else r["family"]
                lines.setdefault(name, []).append((r[x] * factor, r[y] * 100))
        if lines:
            found[f"{case['inputs']}, {case['length']:,} tokens"] = {n: sorted(p) for n, p in lines.items()}
    return found


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the pictures and returns their paths. Needs matplotlib."""
    cases = record["cases"]
    timed = [_measured(case) for case in cases]
    area, error = "keys seen, % of causal attention's", "error of the output, %"
    worse, recalled = "perplexity above exact attention's, %", "lines recalled, %"
    errors = _series(cases, "kept_area", "error", False)
    perplexities = _series(cases, "kept_area", "perplexity_change", False)
    order = tuple(
        dict.fromkeys(r["family"] for case in cases for r in case["results"] if r["family"] != "exact")
    )
    pictures = (
        ("error_over_cost", errors, (area, error), "log"),
        ("error_over_time", _series(timed, "ms", "error", False), ("ms, one layer", error), "log"),
        ("perplexity_over_cost", perplexities, (area, worse), "symlog"),
        (
            "perplexity_over_time",
            _series(timed, "ms", "perplexity_change", False),
            ("ms, one layer", worse),
            "symlog",
        ),
        ("recall_over_cost", _series(cases, "kept_area", "recall", True), (area, recalled), "linear"),
    )
    written = []
    for name, series, (x, y), scale in pictures:
        if series:
            title = name.replace("_", " ").capitalize()
            axes = Axes(x, y, title, "log10", scale, from_zero=scale == "linear", order=order)
            written.append(panels(folder / f"{name}.png", series, axes))
    return written


def _measured(case: dict[str, Any]) -> dict[str, Any]:
    """Without the rows whose time leaves out their selection."""
    return {**case, "results": [r for r in case["results"] if r["selection_timed"]]}
