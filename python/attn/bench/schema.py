"""The form of results.json, and a check of it (the subset of JSON Schema that it uses)."""

from __future__ import annotations

from typing import Any

VERSION = 1
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
_RESULT: dict[str, Any] = {
    "type": "object",
    "required": ["kernel", "exact", "status"],
    "additionalProperties": False,
    "properties": {
        "kernel": {"type": "string"},
        "exact": {
            "type": "boolean",
            "description": "false: an approximation of the case's attention, or another mechanism",
        },
        "other": {
            "type": "boolean",
            "description": "true: no softmax attention, checked by its own reference",
        },
        "status": {"enum": ["measured", "skipped", "disagrees", "failed"]},
        "reason": {"type": "string", "description": "why it was not measured"},
        "ms": {**_POSITIVE, "description": "median over the rounds"},
        "ms_min": _POSITIVE,
        "ms_max": _POSITIVE,
        "speedup": {
            "type": ["number", "null"],
            "description": "over SDPA flash, median of same-round ratios",
        },
        "gflops": {**_POSITIVE, "description": "over the exact area of the mask; exact kernels only"},
        "extra_bytes": {
            "type": ["integer", "null"],
            "description": "growth of the resident memory during a call, result included; null: not known",
        },
        "error": {
            "type": "number",
            "description": "norm of the difference from float64 over its norm; sampled rows, forward",
        },
    },
}
_CASE: dict[str, Any] = {
    "type": "object",
    "required": ["case", "mask", "length", "dtype", "stage", "density", "gflop", "peak_gflops", "results"],
    "additionalProperties": False,
    "properties": {
        "case": {"type": "string"},
        "mask": {"type": "string"},
        "length": {"type": "integer"},
        "dtype": {"enum": ["float32", "bfloat16", "float16"]},
        "stage": {"enum": ["forward", "backward", "decode"]},
        "density": {"type": "number", "description": "visible pairs / all pairs, exact"},
        "gflop": {**_POSITIVE, "description": "4 pairs D, backward 2.5 times that"},
        "peak_gflops": {**_POSITIVE, "description": "PyTorch's fastest matrix product just before the case"},
        "results": {"type": "array", "items": _RESULT},
    },
}


def results(settings: list[str], more: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """The schema of a results.json: what both commands' begin with, ``more``, and the cases."""
    head = {
        "schema": {"enum": [VERSION]},
        "command": {"type": "string"},
        "date": {"type": "string"},
        "machine": {"type": "object", "required": ["cpu", "threads", "isa", "attn", "torch", "platform"]},
        "settings": {"type": "object", "required": settings},
    }
    properties = head | more | {"cases": {"type": "array", "items": case}}
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


SCHEMA = results(
    ["heads", "kv_heads", "head_dim", "rounds"],
    {"peaks_gflops": {"type": "object", "description": "per dtype, the largest of the cases' peak_gflops"}},
    _CASE,
)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def validate(value: Any, schema: dict[str, Any] = SCHEMA, where: str = "results") -> None:
    """ValueError that names the first place where ``value`` isn't what the schema says."""
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{where} must be one of {schema['enum']}, got {value!r}")
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        fits = any(isinstance(value, _TYPES[n]) for n in names)
        if not fits or (isinstance(value, bool) and "boolean" not in names):
            raise ValueError(f"{where} must be of type {' or '.join(names)}, got {value!r}")
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        raise ValueError(f"{where} must be greater than {schema['exclusiveMinimum']}, got {value!r}")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                raise ValueError(f"{where} must have {name!r}")
        for name, item in value.items():
            if name in known:
                validate(item, known[name], f"{where}.{name}")
            elif schema.get("additionalProperties") is False:
                raise ValueError(f"{where} has an unknown field {name!r}")
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            validate(item, schema["items"], f"{where}[{i}]")
