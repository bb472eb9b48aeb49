"""Time, memory and accuracy of one way to compute attention."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..selection import HipSelection


def timed(call: Callable[[], Tensor], at_least: float = 1.0) -> tuple[Tensor, float]:
    """The result and the milliseconds of the fastest of up to three runs; a run that takes longer than
    ``at_least`` seconds isn't repeated."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        out = call()
        best = min(best, time.perf_counter() - start)
        if best > at_least:
            break
    return out, best * 1e3


def peak_extra_bytes(call: Callable[[], object]) -> int | None:
    """Bytes by which the process's resident memory grew at most during ``call``, its result included; None
    where the operating system doesn't tell (elsewhere than Linux)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that is free but still resident would hide an allocation
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError, LookupError):
        return None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


class Sample:
    """Some query rows, with their exact attention in float64."""

    MOST_KEYS = 4096  # as many of a row's heaviest keys are ranked

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> None:
        tokens = q.shape[2]
        # Evenly spread, and in no fixed place inside a block of queries.
        self.rows = (torch.arange(count) * tokens // count + torch.arange(count) * 7 % 61).clamp(
            max=tokens - 1
        )
        later = torch.arange(tokens) > self.rows[:, None]
        self.weights = torch.empty(q.shape[1], count, tokens)
        self.out = torch.empty(q.shape[1], count, v.shape[-1], dtype=torch.float64)
        ranked = min(tokens, self.MOST_KEYS)
        self.heaviest = torch.empty(
            q.shape[1], count, ranked
        )  # weight of a row's n + 1 heaviest keys together
        for head in range(q.shape[1]):  # a head at a time: rows x tokens in float64
            scores = q[0, head, self.rows].double() @ k[0, head].double().T * q.shape[-1] ** -0.5
            weights = scores.masked_fill(later, float("-inf")).softmax(-1)
            self.out[head] = weights @ v[0, head].double()
            self.weights[head] = weights.float()
            self.heaviest[head] = weights.topk(ranked, sorted=True).values.cumsum(-1).float()

    def error(self, out: Tensor) -> float:
        """Relative error of the sampled rows of ``out``: the norm of the difference over theirs."""
        difference = out[0, :, self.rows].double() - self.out
        return float(difference.norm() / self.out.norm())

    def kept_mass(self, visible: Tensor) -> float:
        """Share of the true attention weight on the keys that ``visible [heads, rows, tokens]`` keeps."""
        return float((self.weights * visible).sum() / self.weights.sum())

    def best_mass(self, visible: Tensor) -> float:
        """The same share if every row's keys, as many as ``visible`` gives it, were its heaviest."""
        last = visible.sum(-1, keepdim=True).clamp(1, self.heaviest.shape[-1]) - 1
        return float(self.heaviest.gather(-1, last).mean())

    def visible_to_hip(
        self, selection: HipSelection, block_q: int, block_k: int, window: int, sink: int
    ) -> Tensor:
        """Which keys HiP attention lets each sampled row see, per head."""
        heads, count, tokens = self.weights.shape
        key = torch.arange(tokens)
        seen = (key < sink) | (key > self.rows[:, None] - window)
        visible = seen.expand(heads, count, tokens).clone()
        for i, row in enumerate(self.rows.tolist()):
            index = selection.index[0, :, row // block_q].long()
            valid = torch.arange(index.shape[1]) < selection.count[0, :, row // block_q, None]
            for offset in range(block_k):
                keys = torch.where(valid, index + offset, tokens).clamp(max=tokens)
                chosen = torch.zeros(heads, tokens + 1, dtype=torch.bool).scatter_(1, keys, True)
                visible[:, i] |= chosen[:, :tokens]
            visible[:, i] &= key <= row
        return visible
