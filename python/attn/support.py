"""The page of documentation that says what runs where, from the table that dispatch and errors use."""

from __future__ import annotations

from ._cuda import WITHOUT_KERNEL
from .capability import BACKENDS, Backend, Predicate, dtype_name

_HEAD = """# What runs where

<!-- Written by `python -m attn info --matrix`; a test compares. -->

Which function a backend has kernels for, and in which dtypes. Calls are checked against this table:
one outside it raises `attn.BackendError` with the reason for every backend. `python -m attn info` prints the
table of the installation at hand.
"""

_GPU = """The CUDA kernels have been compiled, and executed on the CPU by the runner in `tests/simt`; they
have not been run on a GPU yet.

On GPUs of compute capability 9.0, builds for 9.0 that found CUTLASS (`ATTN_CUDA_SM90A`) have
kernels of their own for `attention`, `block_sparse_attention` and `s2_attention`: bf16 and fp16,
equal head dimensions of 64 or 128, more than 16 rows (of the backward at least 64) or packed, blocks
in multiples of 64, a scale above 0, k and v (of the backward q and the gradient of out, too) whose
rows begin at multiples of 16 bytes and aren't expanded, without softcap, segments, key weights, sink
keys or skipped gates. They compute the same; every other call takes the kernels of sm_80."""


def matrix() -> str:
    """docs/support.md."""
    ops = list(dict.fromkeys(op for backend in BACKENDS for op in backend.ops))
    notes: list[str] = []
    lines = [
        "| function | " + " | ".join(backend.name for backend in BACKENDS) + " |",
        "|---" * (len(BACKENDS) + 1) + "|",
    ]
    for op in sorted(ops):
        cells = [_cell(backend, op, notes) for backend in BACKENDS]
        lines.append(f"| `{op}` | " + " | ".join(cells) + " |")
    parts = [_HEAD, "\n".join(lines)]
    if notes:
        parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
    parts.append("\n".join(_backend(backend) for backend in BACKENDS))
    parts.append(f"{_GPU} {_forward_only()}".rstrip())
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _cell(backend: Backend, op: str, notes: list[str]) -> str:
    if op not in backend.ops:
        return "no"
    marks = [_note(predicate, notes) for predicate in backend.ops[op]]
    return ", ".join(_short(dtype_name(dtype)) for dtype in backend.dtypes) + "".join(marks)


def _note(predicate: Predicate, notes: list[str]) -> str:
    text = _meaning(predicate)
    if text not in notes:
        notes.append(text)
    return f" ({notes.index(text) + 1})"


def _meaning(predicate: Predicate) -> str:
    if not predicate.__doc__:
        raise ValueError(f"{predicate} restricts a backend: its docstring must say how, for docs/support.md")
    return " ".join(predicate.__doc__.split())


def _short(dtype: str) -> str:
    return {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}[dtype]


def _backend(backend: Backend) -> str:
    text = f"- `{backend.name}` serves tensors on: {', '.join(backend.devices)}."
    return " ".join([text, *(_meaning(predicate) for predicate in backend.predicates)])


def _forward_only() -> str:
    """Which ops have a CUDA kernel for the forward pass only."""
    found = []
    for name in sorted(WITHOUT_KERNEL):
        op = name.removesuffix("_backward")
        if op != name and not {op, f"{op}_forward"} & WITHOUT_KERNEL:
            found.append(f"`{op}`")
    return f"On CUDA these ops have a forward pass only: {', '.join(found)}." if found else ""
