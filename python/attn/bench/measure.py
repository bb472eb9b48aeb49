"""One case: inputs, who takes part, check, error, memory, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..demo.measure import peak_extra_bytes
from .kernel import Call, Kernel
from .kernels import BASELINE, DECODE, KERNELS
from .machine import peak_gflops
from .masks import Mask, build
from .plan import Case
from .timing import calm, summary
from .verify import disagreement

HEADS, KV_HEADS, DIM = 8, 1, 128  # LongCA-bench's head dim and ratio of heads
DECODE_BATCH = 4
SAMPLED_ROWS = 32


class Checks:
    """Remembers which kernels were checked; each is once per mask, dtype and pass."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str, str], str | None] = {}

    def __call__(self, kernel: Kernel, case: Case) -> str | None:
        key = (kernel.name, case.mask, case.dtype, case.stage)
        if key not in self._known:
            try:
                self._known[key] = disagreement(kernel, case.mask, case.dtype, case.stage)
            except Exception as error:  # a peer may fail in its own ways: that is a result
                self._known[key] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return self._known[key]


def run(
    case: Case, checks: Callable[[Kernel, Case], str | None], rounds: int, without: Sequence[str] = ()
) -> dict[str, Any]:
    """The record of a case, as :mod:`attn.bench.schema` describes it. ``without``: kernels to leave out."""
    peak = peak_gflops(case.dtype)
    decode = case.stage == "decode"
    mask = build(case.mask, case.length)
    q, k, v = _inputs(case)
    area = DECODE_BATCH * case.length if decode else mask.area()
    pairs = area * HEADS
    flop = 4 * pairs * DIM * (2.5 if case.stage == "backward" else 1.0)
    exact = None if case.stage == "backward" else _exact_rows(mask, q, k, v, decode)
    rows: list[dict[str, Any]] = []
    calls: dict[str, Callable[[], object]] = {}
    for kernel in DECODE if decode else KERNELS:
        if kernel.name in without:
            continue
        reason = kernel.cannot(mask, case.stage, HEADS)
        if kernel.compiles and reason is None and not case.flex:
            reason = "compiles for every mask and length: left out of the quick run here"
        row: dict[str, Any] = {"kernel": kernel.name, "exact": kernel.exact, "status": "measured"}
        if kernel.reference is not None:
            row["other"] = True
        rows.append(row)
        if reason is not None:
            if "only" not in reason and "decode kernel" not in reason:
                row.update(status="skipped", reason=reason)
            else:
                rows.pop()  # has nothing to do with the case
            continue
        wrong = checks(kernel, case)
        if wrong is not None:
            row.update(status="failed" if wrong.startswith("failed") else "disagrees", reason=wrong)
            continue
        call = kernel.make(mask)
        if exact is not None and kernel.reference is None:
            row["error"] = _error(call(q, k, v), *exact)
        step = _stage(call, case.stage, q, k, v)
        if case.stage == "backward":
            step()  # allocations of autograd's own
        row["extra_bytes"] = peak_extra_bytes(step)
        calls[kernel.name] = step
    times = calm(calls, rounds)
    for row in rows:
        if row["status"] != "measured":
            continue
        row.update(summary(times[row["kernel"]], times.get(BASELINE)))
        if row["exact"]:
            row["gflops"] = flop / row["ms"] * 1e-6
    total = DECODE_BATCH * case.length if decode else case.length**2
    return {
        "case": case.name,
        "mask": case.mask,
        "length": case.length,
        "dtype": case.dtype,
        "stage": case.stage,
        "density": area / total,
        "gflop": flop * 1e-9,
        "peak_gflops": peak,
        "results": rows,
    }


def _inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(case.length)
    batch, q_len = (DECODE_BATCH, 1) if case.stage == "decode" else (1, case.length)
    shapes = ((HEADS, q_len), (KV_HEADS, case.length), (KV_HEADS, case.length))
    q, k, v = (
        torch.randn(batch, heads, n, DIM, generator=generator).to(getattr(torch, case.dtype))
        for heads, n in shapes
    )
    return q, k, v


def _exact_rows(mask: Mask, q: Tensor, k: Tensor, v: Tensor, decode: bool) -> tuple[Tensor, Tensor]:
    """Rows, evenly spread, and their attention in float64 ``[B, H, rows, Dv]``."""
    rows = torch.arange(1) if decode else torch.arange(SAMPLED_ROWS) * mask.length // SAMPLED_ROWS
    scores = q[:, :, rows].double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    if not decode:
        scores = scores.masked_fill(~mask.rows(rows), float("-inf"))
    return rows, scores.softmax(-1) @ v.double()


def _error(out: Tensor, rows: Tensor, exact: Tensor) -> float:
    return float((out[:, :, rows].double() - exact).norm() / exact.norm())


def _stage(call: Call, stage: str, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    if stage != "backward":
        return lambda: call(q, k, v)
    inputs = tuple(x.detach().clone().requires_grad_() for x in (q, k, v))
    out = call(*inputs)
    dout = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)
