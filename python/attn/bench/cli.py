"""What the benchmark's two commands share: how they end, and what they leave behind."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..demo.encoder import DemoError
from .schema import VERSION
from .store import OtherRun


def ended(program: str, run: Callable[[], int]) -> int:
    """Exit status of ``run``; 2 and one line where the user has to change something, 130 after Ctrl-C."""
    try:
        return run()
    except (OtherRun, DemoError, ValueError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def add_common(parser: argparse.ArgumentParser, rounds: str, folder: str) -> None:
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds of timing (default {rounds})")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument(
        "--out", type=Path, default=Path(folder), help=f"folder for results (default {folder})"
    )


def check_common(options: argparse.Namespace) -> None:
    for name, value in (("threads", options.threads), ("rounds", options.rounds)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")


def header(program: str, arguments: list[str], machine: Any, settings: Any) -> dict[str, Any]:
    """The fields with which results.json begins."""
    return {
        "schema": VERSION,
        "command": shlex.join([*program.split(), *arguments]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "settings": settings,
    }


def write(
    record: dict[str, Any],
    folder: Path,
    markdown: Callable[[dict[str, Any]], str],
    draw: Callable[[dict[str, Any], Path], list[Path]],
    file: Path | None = None,
) -> None:
    """results.json (or ``file``), results.md and, where matplotlib is, pictures."""
    written = [file or folder / "results.json", folder / "results.md"]
    written[0].parent.mkdir(parents=True, exist_ok=True)
    written[0].write_text(json.dumps(record, indent=1) + "\n")
    written[1].write_text(markdown(record))
    if importlib.util.find_spec("matplotlib") is None:
        print("no pictures: they need matplotlib (pip install 'attn[bench]')", file=sys.stderr)
    else:
        written += draw(record, folder)
    print("wrote " + ", ".join(map(str, written)))
