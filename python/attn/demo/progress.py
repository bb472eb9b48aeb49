"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time


class Progress:
    """Steps of known weight, about the seconds they take. The bar shows the share of the whole and the step
    at work; the clock runs on inside a step that can't report, and the bar creeps with it."""

    WIDTH = 28

    def __init__(self, total: float) -> None:
        self.total, self.done, self.weight, self.name = total, 0.0, 0.0, ""
        self.start = self.step_start = time.perf_counter()
        self.share: float | None = None  # what the step has reported
        self.live = sys.stderr.isatty()
        self.lock, self.ended = threading.Lock(), threading.Event()
        if self.live:
            threading.Thread(target=self._tick, daemon=True).start()

    def step(self, name: str, weight: float) -> None:
        """Ends the step before and begins one."""
        with self.lock:
            self.done += self.weight
            self.name, self.weight, self.share = name, weight, None
            self.step_start = time.perf_counter()
        if not self.live:
            print(f"[{self.step_start - self.start:5.1f} s] {name}", file=sys.stderr, flush=True)
        self._paint()

    def update(self, share: float) -> None:
        """How much of the current step is done, 0 to 1."""
        self.share = min(1.0, share)
        self._paint()

    def finish(self) -> None:
        self.ended.set()
        if self.live:
            with self.lock:
                print("\r" + " " * 100 + "\r", end="", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self.ended.wait(0.5):
            self._paint()

    def _paint(self) -> None:
        with self.lock:
            if not self.live or self.ended.is_set():
                return
            now = time.perf_counter()
            guess = min(0.95, (now - self.step_start) / max(self.weight, 1e-3))
            share = guess if self.share is None else self.share
            whole = min(1.0, (self.done + self.weight * share) / self.total)
            bar = "#" * int(whole * self.WIDTH)
            line = f"[{bar:<{self.WIDTH}}] {whole * 100:3.0f} %  {now - self.start:5.1f} s  {self.name}"
            print(f"\r{line:<100.100}", end="", file=sys.stderr, flush=True)
