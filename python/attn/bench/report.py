"""results.json as Markdown."""

from __future__ import annotations

from typing import Any

from .kernels import BASELINE


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def _row(result: dict[str, Any], peak: float) -> list[str]:
    if result["status"] != "measured":
        return [result["kernel"], f"{result['status']}: {result['reason']}"] + [""] * 6
    spread = (result["ms_max"] - result["ms_min"]) / result["ms"] * 50
    extra, speed = result.get("extra_bytes"), result.get("gflops")
    return [
        result["kernel"],
        f"{_number(result['ms'])} ± {spread:.0f} %",
        "" if result["speedup"] is None else f"{result['speedup']:.2f}x",
        "" if speed is None else _number(speed * 1e-3),
        "" if speed is None else f"{speed / peak * 100:.0f} %",
        "" if extra is None else f"{extra / 2**20:.1f}",
        "" if "error" not in result else f"{result['error']:.1e}",
        "" if result["exact"] else "other mechanism" if result.get("other") else "approximation",
    ]


def markdown(record: dict[str, Any]) -> str:
    """A table for every case, after what it was measured on."""
    machine, settings = record["machine"], record["settings"]
    peaks = ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in record["peaks_gflops"].items())
    date, command = record["date"], record["command"]
    text = f"""\
# Benchmark

`{command}`, {date}

{machine["cpu"]}, {machine["threads"]} threads, {machine["isa"]} kernels, attn {machine["attn"]}, torch
{machine["torch"]}. {settings["heads"]} heads, {settings["kv_heads"]} key/value head, dimension
{settings["head_dim"]}; {settings["rounds"]} interleaved rounds; backward is the backward pass alone.
Peak: PyTorch's fastest matrix product here, {peaks} with all threads.

ms: median ± half the range. speed-up: over {BASELINE}, same rounds. TFLOP/s: over the exact area of the mask.
memory: MiB, growth during a call, result included. error: from float64, by norm, of sampled rows."""
    lines = text.splitlines()
    for case in record["cases"]:
        lines += [
            "",
            f"## {case['case']}",
            "",
            f"density {case['density']:.3g}, {case['gflop']:.3g} GFLOP",
            "",
        ]
        heads = ["kernel", "ms", "speed-up", "TFLOP/s", "of peak", "memory", "error", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * 6 + "|---|"]
        lines += [
            "| " + " | ".join(_row(result, record["peaks_gflops"][case["dtype"]])) + " |"
            for result in case["results"]
        ]
    return "\n".join(lines) + "\n"
