"""Arguments, the run, and what it leaves behind."""

from __future__ import annotations

import argparse
import sys
from functools import partial

import torch

from ..demo.progress import Progress
from .cli import add_common, check_common, ended, header, write
from .kernels import DECODE, KERNELS
from .machine import facts
from .measure import DIM, HEADS, KV_HEADS, Checks, run
from .plan import DTYPES, Case, plan
from .plots import draw
from .report import markdown
from .schema import validate
from .store import Store
from .timing import keep_memory

PROGRAM = "python -m attn bench"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Times attn and its peers over the masks of LongCA-bench, after checking that "
        "each computes the same mask. Finished cases are kept: run it again to go on after an interruption. "
        "`python -m attn bench accuracy` measures what approximations lose instead.",
    )
    p.add_argument(
        "--quick", action="store_true", help="short sequences, few rounds: under 2 minutes on 2 cores"
    )
    p.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="TEXT",
        help='cases whose name contains one of them, e.g. "backward causal"; * stands for anything',
    )
    p.add_argument(
        "--without", nargs="+", default=[], metavar="KERNEL", help="kernels to leave out, e.g. FlexAttention"
    )
    p.add_argument("--dtype", choices=(*DTYPES, "float16"), help=f"default: {' and '.join(DTYPES)}")
    p.add_argument("--lengths", type=int, nargs="+", default=[], help="tokens (default 1024 to 16384)")
    add_common(p, "7, quick 3", "attn-bench")
    p.add_argument("--list", action="store_true", help="print the cases and stop")
    return p


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["accuracy"]:
        from .accuracy import main as accuracy

        return accuracy(arguments[1:])
    options = parser().parse_args(arguments)
    return ended(PROGRAM, partial(_run, options, arguments))


def _chosen(options: argparse.Namespace) -> list[Case]:
    check_common(options)
    for length in options.lengths:
        if not 256 <= length <= 1 << 17:
            raise ValueError(f"--lengths must be 256 to {1 << 17}, got {length}")
    known = {kernel.name for kernel in (*KERNELS, *DECODE)}
    for name in options.without:
        if name not in known:
            raise ValueError(f"--without must name one of {', '.join(sorted(known))}; got {name!r}")
    dtypes = (options.dtype,) if options.dtype else DTYPES
    cases = plan(quick=options.quick, only=tuple(options.only), dtypes=dtypes, lengths=tuple(options.lengths))
    if not cases:
        raise ValueError(f"no case's name contains {' or '.join(options.only)!r}; --list shows the cases")
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
    without = sorted(set(options.without))
    settings = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM, "rounds": rounds, "without": without}
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
        store.add(run(case, checks, rounds, without))
    progress.finish()
    done = [store.cases[case.name] for case in cases]
    peaks: dict[str, float] = {}
    for finished in done:
        peaks[finished["dtype"]] = max(peaks.get(finished["dtype"], 0.0), finished["peak_gflops"])
    record = header(PROGRAM, arguments, machine, settings) | {"peaks_gflops": peaks, "cases": done}
    validate(record)
    write(record, options.out, markdown, draw)
    wrong = [
        (case["case"], r["kernel"], r["reason"])
        for case in record["cases"]
        for r in case["results"]
        if r["status"] in ("disagrees", "failed")
    ]
    for name, kernel, reason in wrong:
        print(f"{name}: {kernel}: {reason}")
    return 1 if any(kernel.startswith("attn") for _, kernel, _ in wrong) else 0


def _weight(case: Case) -> float:
    """Cost of a case relative to others, for the progress bar."""
    if case.stage == "decode":
        return 1.0
    return 1 + case.length**2 * 1e-6 * (2.5 if case.stage == "backward" else 1) + (20 if case.flex else 0)
