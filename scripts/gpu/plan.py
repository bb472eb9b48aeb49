"""Steps that are commands, run one after another within one time limit."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

NOT_RUN = "not run"


@dataclass(frozen=True)
class Step:
    """One command. `limit`: seconds after which it is stopped; `least`: not started with less left."""

    name: str
    command: list[str]
    limit: float
    least: float = 10.0
    environment: dict[str, str] = field(default_factory=dict)
    on_gpu: bool = True
    why_not: str = ""  # set where something it needs is missing
    says: str = ""  # what its output matches if it did something: tests may all have been skipped


@dataclass
class Result:
    name: str
    status: str  # ok, failed, stopped, not run
    seconds: float = 0.0
    detail: str = ""
    log: str = ""


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:150] if lines else ""


class Runner:
    """Runs steps until `seconds` are over; each writes its output into `folder`/logs."""

    def __init__(self, folder: Path, seconds: float, dry: bool) -> None:
        """`seconds` from now."""
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + seconds
        self.dry = dry
        self.results: list[Result] = []

    def left(self) -> float:
        return self.end - time.monotonic()

    def skip(self, name: str, why: str) -> Result:
        print(f"== {name}: not run, {why}", flush=True)
        self.results.append(Result(name, NOT_RUN, detail=why))
        return self.results[-1]

    def run(self, step: Step) -> Result:
        if step.why_not:
            return self.skip(step.name, step.why_not)
        if self.dry and step.on_gpu:
            print("   would run:", " ".join(step.command))
            return self.skip(step.name, "dry run")
        if self.left() < step.least:
            return self.skip(step.name, "no time left")
        limit = min(step.limit, self.left())
        log = self.logs / (step.name.replace(" ", "_") + ".log")
        print(f"== {step.name} (at most {limit:.0f} s): {' '.join(step.command)}", flush=True)
        start = time.monotonic()
        with log.open("w") as out:
            # What a program has printed is there when it is stopped.
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
            try:
                process = subprocess.Popen(
                    step.command,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                return self.skip(step.name, str(error))
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, 9)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)  # one that waits for a hung driver can't be killed
        seconds = time.monotonic() - start
        status = "stopped" if code is None else "ok" if code == 0 else "failed"
        detail = last_line(log)
        if status == "ok" and not re.search(step.says, log.read_text(errors="replace")):
            status, detail = "failed", f"nothing was done: {detail}"
        self.results.append(Result(step.name, status, seconds, detail, str(log)))
        print(f"   {status} after {seconds:.1f} s: {detail}", flush=True)
        return self.results[-1]
