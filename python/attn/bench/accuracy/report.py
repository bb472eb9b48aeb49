"""results.json as Markdown."""

from __future__ import annotations

from typing import Any


def _percent(value: float | None, digits: int = 1, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{value * 100:+.{digits}f} %" if sign else f"{value * 100:.{digits}f} %"


def _row(result: dict[str, Any], model: bool) -> list[str]:
    error = result["error"]
    cells = [
        result["mechanism"],
        _percent(result["kept_area"]),
        f"{result['ms']:.3g}" + ("" if result["selection_timed"] else " *"),
        f"{result['speedup']:.2f}x",
        f"{error:.1e}" if error < 1e-3 else _percent(error),
        _percent(result["kept_mass"]),
        _percent(result["best_mass"]),
    ]
    if model and "perplexity" in result:
        depths = " ".join("-" if x is None else f"{x * 100:.0f}" for x in result["recall_by_depth"])
        change = _percent(result["perplexity_change"], sign=True)
        cells += [f"{result['perplexity']:.2f}", change, _percent(result["recall"], 0), depths]
    elif model:
        cells += [""] * 4
    return cells


def markdown(record: dict[str, Any]) -> str:
    """A table for every set of inputs, after what it was measured on."""
    machine, model, settings = record["machine"], record["model"], record["settings"]
    date, command = record["date"], record["command"]
    text = f"""\
# Accuracy over cost

`{command}`, {date}

{machine["cpu"]}, {machine["threads"]} threads, {machine["isa"]} kernels, attn {machine["attn"]}, torch
{machine["torch"]}; float32; {settings["rounds"]} interleaved rounds.

Language model: {model["parameters"]:,} parameters, {model["layers"]} layers of {model["dim"]}, vocabulary of
{model["vocabulary"]}; trained for {model["seconds"]:.0f} s ({model["steps"]} steps, {model["tokens"]:,}
tokens) on the Python standard library's sources, with attn.

area: keys seen, of those that causal attention sees. ms: one layer's attention, forward, selection included
(*: without it, since the oracle's selection reads all weights). error: of the output from float64, by norm.
mass: exact attention weight on the keys that are seen; at best: on as many, each row's heaviest. perplexity:
on held-out code, the mechanism in every layer. recall: lines `# pin of WORD WORD:DDDD` reproduced at the end
of the text; by depth: in percent, of lines from the first to the last quarter of the text."""
    lines = text.splitlines()
    for case in record["cases"]:
        on_model = any("perplexity" in r for r in case["results"])
        lines += ["", f"## {case['inputs']}, {case['length']} tokens", ""]
        shape = f"{case['heads']} heads of {case['dim']}, {case['layers']} layer(s)"
        if on_model:
            shape += f"; perplexity of {case['tokens']:,} tokens, recall of {case['lines']} lines"
        heads = ["", "area", "ms", "speed-up", "error", "mass", "at best"]
        heads += ["perplexity", "change", "recall", "by depth"] if on_model else []
        lines += [shape + ".", "", "| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
        lines += ["| " + " | ".join(_row(r, on_model)) + " |" for r in case["results"]]
    return "\n".join(lines) + "\n"
