"""The form of the accuracy benchmark's results.json."""

from __future__ import annotations

from typing import Any

from ..schema import results

_SHARE = {"type": "number"}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_RESULT: dict[str, Any] = {
    "type": "object",
    "required": [
        "mechanism",
        "family",
        "selection_timed",
        "error",
        "kept_area",
        "kept_mass",
        "best_mass",
        "ms",
    ],
    "additionalProperties": False,
    "properties": {
        "mechanism": {"type": "string"},
        "family": {"type": "string", "description": "line of the plots"},
        "selection_timed": {
            "type": "boolean",
            "description": "false: an oracle, which looks at all weights; ms without it",
        },
        "error": {
            "type": "number",
            "description": "norm of the difference from float64 over its norm; sampled rows, mean of layers",
        },
        "kept_area": {
            **_SHARE,
            "description": "keys that rows see / keys that causal attention lets them see",
        },
        "kept_mass": {
            **_SHARE,
            "description": "share of the exact attention weight on the keys that are seen",
        },
        "best_mass": {**_SHARE, "description": "the same on as many keys, each row's heaviest"},
        "ms": {**_POSITIVE, "description": "of one layer's attention, forward, selection included; median"},
        "ms_min": _POSITIVE,
        "ms_max": _POSITIVE,
        "speedup": {"type": ["number", "null"], "description": "over attn's exact attention, same rounds"},
        "perplexity": {
            "type": "number",
            "description": "of the language model on held-out code, this mechanism in every layer",
        },
        "perplexity_change": {
            "type": "number",
            "description": "perplexity / that of exact attention, minus 1",
        },
        "recall": {"type": "number", "description": "share of lines whose digits are all predicted"},
        "recall_by_depth": {
            "type": "array",
            "items": {"type": ["number", "null"]},
            "description": "recall of lines in the first, ..., last part of the text",
        },
    },
}
_CASE: dict[str, Any] = {
    "type": "object",
    "required": ["inputs", "length", "heads", "dim", "layers", "results"],
    "additionalProperties": False,
    "properties": {
        "inputs": {"enum": ["MiniLM", "language model"]},
        "length": {"type": "integer"},
        "heads": {"type": "integer"},
        "dim": {"type": "integer"},
        "layers": {"type": "integer", "description": "over how many the errors are averaged"},
        "tokens": {"type": "integer", "description": "that the perplexity is of"},
        "lines": {"type": "integer", "description": "that the recall is of"},
        "results": {"type": "array", "items": _RESULT},
    },
}
SCHEMA = results(
    ["quick", "seed", "rounds", "train_seconds"],
    {
        "model": {
            "type": "object",
            "required": [
                "parameters",
                "layers",
                "dim",
                "vocabulary",
                "steps",
                "seconds",
                "tokens",
                "last_loss",
            ],
            "properties": {
                "seconds": {"type": "number", "description": "spent on training"},
                "tokens": {"type": "integer", "description": "seen in training"},
                "last_loss": {"type": "number", "description": "mean of the last 20 steps, recall weighted"},
            },
        },
    },
    _CASE,
)
