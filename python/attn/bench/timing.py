"""Interleaved timing: the kernels of a case run in turn, round after round, so that a machine whose speed
drifts does so for all of them."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable

SHORT = 5e-3  # calls shorter than this are repeated within a round
RESTLESS = 0.15


def keep_memory() -> None:
    """From now on freed memory stays with the process, so that timings don't measure page faults (glibc)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def once(call: Callable[[], object]) -> float:
    """Seconds of one call; of a short one the mean of as many as fit in 20 ms."""
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    if seconds > SHORT:
        return seconds
    repeats = max(1, int(20e-3 / max(seconds, 1e-7)))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in every round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(once(call))
    return times


def unrest(times: dict[str, list[float]]) -> float:
    """How far the calls' times are spread: half the range over the median, of the median call."""
    return statistics.median((max(t) - min(t)) / statistics.median(t) / 2 for t in times.values())


def calm(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """:func:`interleaved`, once more where something else used the machine; the calmer of the two."""
    times = interleaved(calls, rounds)
    if times and unrest(times) > RESTLESS:
        times = min(times, interleaved(calls, rounds), key=unrest)
    return times


def summary(times: list[float], baseline: list[float] | None) -> dict[str, float | None]:
    """Median, least and greatest milliseconds, and the median of the rounds' baseline time / this time."""
    speedup = None
    if baseline is not None:
        speedup = statistics.median(b / t for b, t in zip(baseline, times, strict=True))
    return {
        "ms": statistics.median(times) * 1e3,
        "ms_min": min(times) * 1e3,
        "ms_max": max(times) * 1e3,
        "speedup": speedup,
    }
