"""A progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """Steps of known weight; the bar shows the share of the whole and the step at work."""

    WIDTH = 28

    def __init__(self, total: float) -> None:
        self.total, self.done, self.weight, self.name = total, 0.0, 0.0, ""
        self.start = time.perf_counter()
        self.live = sys.stderr.isatty()

    def step(self, name: str, weight: float) -> None:
        """Ends the step before and begins one."""
        self.done += self.weight
        self.name, self.weight = name, weight
        if not self.live:
            print(f"[{time.perf_counter() - self.start:5.1f} s] {name}", file=sys.stderr, flush=True)
        self.update(0.0)

    def update(self, share: float) -> None:
        """How much of the current step is done, 0 to 1."""
        if not self.live:
            return
        whole = min(1.0, (self.done + self.weight * min(1.0, share)) / self.total)
        bar = "#" * int(whole * self.WIDTH)
        seconds = time.perf_counter() - self.start
        line = f"[{bar:<{self.WIDTH}}] {whole * 100:3.0f} %  {seconds:5.1f} s  {self.name}"
        print(f"\r{line:<100.100}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self.live:
            print("\r" + " " * 100 + "\r", end="", file=sys.stderr, flush=True)
