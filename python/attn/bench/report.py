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


def _ours(case: dict[str, Any]) -> str:
    """TFLOP/s of attn's fastest exact kernel, and how many times those of the fastest peer they are."""
    mine, peers = (
        max(
            (
                r["gflops"]
                for r in case["results"]
                if "gflops" in r and r["kernel"].startswith("attn") == ours
            ),
            default=None,
        )
        for ours in (True, False)
    )
    if mine is None:
        return ""
    return f"{mine * 1e-3:.3f}" + ("" if peers is None else f" ({mine / peers:.1f}x)")


def _summary(cases: list[dict[str, Any]]) -> list[str]:
    """For every pass and dtype a table of masks and lengths."""
    lines = [
        "",
        "## Summary",
        "",
        "TFLOP/s over the mask: attn's fastest exact kernel (over each case's fastest peer).",
    ]
    for stage, dtype in dict.fromkeys((c["stage"], c["dtype"]) for c in cases):
        chosen = {(c["mask"], c["length"]): c for c in cases if (c["stage"], c["dtype"]) == (stage, dtype)}
        lengths = sorted({length for _, length in chosen})
        heads = " | ".join(f"{length:,}" for length in lengths)
        lines += ["", f"| {stage}, {dtype} | {heads} |", "|---" + "|---:" * len(lengths) + "|"]
        for mask in dict.fromkeys(mask for mask, _ in chosen):
            cells = [_ours(chosen[mask, n]) if (mask, n) in chosen else "" for n in lengths]
            lines.append(f"| {mask} | " + " | ".join(cells) + " |")
    return lines


def markdown(record: dict[str, Any]) -> str:
    """A summary, and a table for every case, after what it was measured on."""
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
    lines = text.splitlines() + _summary(record["cases"])
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
