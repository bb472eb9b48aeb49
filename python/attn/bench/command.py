"""Arguments, the run, and what it leaves behind."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from ..demo.progress import Progress
from .machine import facts
from .measure import DIM, HEADS, KV_HEADS, Checks, run
from .plan import DTYPES, Case, plan
from .plots import draw
from .report import markdown
from .schema import VERSION, validate
from .store import OtherRun, Store
from .timing import keep_memory


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m attn bench",
        description="Times attn and its peers over the masks of LongCA-bench, after checking that "
        "each computes the same mask. Finished cases are kept: run it again to go on after an interruption. "
        "`python -m attn bench accuracy` measures what approximations lose instead.",
    )
    p.add_argument(
        "--quick", action="store_true", help="short sequences, few rounds: under 2 minutes on 2 cores"
    )
    p.add_argument(
        "--only", default="", metavar="TEXT", help='cases whose name contains it, e.g. "backward causal"'
    )
    p.add_argument("--dtype", choices=(*DTYPES, "float16"), help=f"default: {' and '.join(DTYPES)}")
    p.add_argument("--lengths", type=int, nargs="+", default=[], help="tokens (default 1024 to 16384)")
    p.add_argument("--rounds", type=int, help="interleaved rounds a case (default 7, quick 3)")
    p.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    p.add_argument(
        "--out", type=Path, default=Path("attn-bench"), help="folder for results (default attn-bench)"
    )
    p.add_argument("--list", action="store_true", help="print the cases and stop")
    return p


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["accuracy"]:
        from .accuracy import main as accuracy

        return accuracy(arguments[1:])
    options = parser().parse_args(arguments)
    try:
        return _run(options, arguments)
    except (OtherRun, ValueError) as error:
        print(f"python -m attn bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _chosen(options: argparse.Namespace) -> list[Case]:
    for name, value in (("threads", options.threads), ("rounds", options.rounds)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    for length in options.lengths:
        if not 256 <= length <= 1 << 17:
            raise ValueError(f"--lengths must be 256 to {1 << 17}, got {length}")
    dtypes = (options.dtype,) if options.dtype else DTYPES
    cases = plan(quick=options.quick, only=options.only, dtypes=dtypes, lengths=tuple(options.lengths))
    if not cases:
        raise ValueError(f"no case's name contains {options.only!r}; --list shows the cases")
    return cases


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    cases = _chosen(options)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = options.rounds or (3 if options.quick else 7)
    machine = facts(torch.get_num_threads())
    settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "rounds": rounds}
    store = Store(options.out, {**machine, **settings, "quick": options.quick})
    keep_memory()
    todo = [case for case in cases if case.name not in store.cases]
    if store.resumed:
        print(
            f"going on: {len(cases) - len(todo)} of {len(cases)} cases are in {store.path}", file=sys.stderr
        )
    progress = Progress(sum(map(_weight, todo)) or 1.0)
    checks = Checks()
    for case in todo:
        progress.step(case.name, _weight(case))
        store.add(run(case, checks, rounds))
    progress.finish()
    done = [store.cases[case.name] for case in cases]
    peaks: dict[str, float] = {}
    for finished in done:
        peaks[finished["dtype"]] = max(peaks.get(finished["dtype"], 0.0), finished["peak_gflops"])
    record: dict[str, Any] = {
        "schema": VERSION,
        "command": shlex.join(["python", "-m", "attn", "bench", *arguments]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "settings": settings,
        "peaks_gflops": peaks,
        "cases": done,
    }
    validate(record)
    written = _write(record, options.out)
    wrong = [
        (case["case"], r["kernel"], r["reason"])
        for case in record["cases"]
        for r in case["results"]
        if r["status"] in ("disagrees", "failed")
    ]
    for name, kernel, reason in wrong:
        print(f"{name}: {kernel}: {reason}")
    print("wrote " + ", ".join(map(str, written)))
    return 1 if any(kernel.startswith("attn") for _, kernel, _ in wrong) else 0


def _weight(case: Case) -> float:
    """Cost of a case relative to others, for the progress bar."""
    if case.stage == "decode":
        return 1.0
    return 1 + case.length**2 * 1e-6 * (2.5 if case.stage == "backward" else 1) + (20 if case.flex else 0)


def _write(record: dict[str, Any], folder: Path) -> list[Path]:
    written = [folder / "results.json", folder / "results.md"]
    written[0].write_text(json.dumps(record, indent=1) + "\n")
    written[1].write_text(markdown(record))
    if importlib.util.find_spec("matplotlib") is None:
        print("no pictures: they need matplotlib (pip install 'attn[bench]')", file=sys.stderr)
        return written
    return written + draw(record, folder)
