"""What scripts/gpu_check does, in order."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from . import build as building
from .machine import ROOT, facts
from .plan import NOT_RUN, Runner, Step

# The whole run stays under 9 minutes.
SECONDS = 535.0
# Kept back for what comes after each part.
FOR_BENCHMARK = 130.0
SANITIZED = "*SchedulesAndModifiers*:*SizesAroundTiles*:SimtMergeStates/0.*"
SANITIZED_PYTHON = (
    "anything or (test_case and bfloat16 and (everything or packed_unequal or tiles_odd or head_dim_31))"
)
EPILOG = """
No network is used. What is missing on the machine (cmake, ninja, pybind11, pytest, hypothesis, googletest)
comes from a folder that --collect fills on a machine with network. Results: FOLDER/summary.txt,
results.json, benchmark.json, logs/. Exit status: 0 all that ran was right, 1 something failed, 2 there is no
GPU.
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check",
        description="Builds, tests and times attn on a machine with an NVIDIA GPU, in at most 9 minutes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: build/gpu_check/<time>")
    parser.add_argument("--package", type=Path, help="folder that holds a built `attn`, instead of building")
    parser.add_argument("--device-tests", type=Path, help="built device_tests that go with --package")
    parser.add_argument("--wheels", type=Path, help="folder of --collect")
    parser.add_argument(
        "--collect", type=Path, metavar="FOLDER", help="download what --wheels takes, and stop"
    )
    parser.add_argument("--python-version", default="3.12", help="of the machine --collect is for")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--dry-run", action="store_true", help="everything but what needs the GPU")
    return parser


def sanitizer(tool: str, command: list[str], limit: float, environment: dict[str, str], why: str) -> Step:
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    whole = [found or "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *command]
    missing = why or ("" if found else "compute-sanitizer is not installed")
    return Step(f"compute-sanitizer {tool}", whole, limit, 20, environment, why_not=missing)


def python_steps(environment: dict[str, str]) -> list[Step]:
    """The device tests, and a few where each tensor is its own allocation: accesses outside are seen."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command.append("tests/python/test_cuda_device.py")
    found = Step(
        "python tests found", [*command, "--collect-only"], 60, environment=environment, on_gpu=False
    )
    apart = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        found,
        Step("python tests", command, 200, 30, environment),
        sanitizer("memcheck", [*command, "-k", SANITIZED_PYTHON], 80, apart, ""),
    ]


def device_steps(built: building.Built) -> list[Step]:
    """The C++ tests of tests/simt on the GPU, and a few of them under compute-sanitizer."""
    tests, why = str(built.device_tests), built.why_no_tests
    few = [tests, f"--gtest_filter={SANITIZED}", "--gtest_brief=1"]
    return [
        Step("C++ tests", [tests, "--gtest_brief=1"], 90, why_not=why),
        *(sanitizer(tool, few, 45, {}, why) for tool in ("racecheck", "synccheck")),
    ]


def benchmark_steps(environment: dict[str, str], out: Path, seconds: float) -> list[Step]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    cases = Step("benchmark cases", [*command, "--list"], 60, environment=environment, on_gpu=False)
    command += ["--json", str(out / "benchmark.json"), "--seconds", f"{max(seconds - 40, 10):.0f}"]
    return [cases, Step("benchmark", command, seconds, 30, environment)]


def run_all(options: argparse.Namespace, known: dict[str, str], out: Path) -> Runner:
    runner = Runner(out, options.seconds, options.dry_run)
    if options.package is not None:
        tests = options.device_tests
        why = "" if tests else "no --device-tests with --package"
        built = building.Built(options.package.resolve(), tests, why_no_tests=why)
        environment = building.install_tools(runner, options.wheels)
    else:
        environment = building.install_tools(runner, options.wheels)
        built = building.build(runner, known, options.wheels, environment)
        if built.package is None:
            runner.skip("everything on the GPU", built.why_not)
            return runner
    paths = [str(built.package), str(ROOT / "tests" / "python"), environment.get("PYTHONPATH", "")]
    environment = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    info = [sys.executable, "-m", "attn", "info"]
    runner.run(Step("the package loads", info, 60, environment=environment, on_gpu=False))
    # Tests keep back the time that the benchmark needs.
    end, runner.end = runner.end, runner.end - FOR_BENCHMARK
    for step in (*python_steps(environment), *device_steps(built)):
        runner.run(step)
    runner.end = end
    for step in benchmark_steps(environment, out, runner.left() - 5):
        runner.run(step)
    return runner


def summary(runner: Runner, known: dict[str, str], out: Path) -> str:
    lines = [f"{name:<12} {value or 'none'}" for name, value in known.items()]
    benchmark = out / "logs" / "benchmark.log"
    if benchmark.exists():
        lines += ["", benchmark.read_text(errors="replace").rstrip()]
    head = ["step", "result", "seconds", "last line"]
    rows = [[r.name, r.status, f"{r.seconds:.1f}", r.detail] for r in runner.results]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    text = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    skipped = [r.name for r in runner.results if r.status == NOT_RUN]
    if skipped:
        lines += ["", "NOT EXECUTED: " + ", ".join(skipped)]
    if not known["GPU"]:
        lines += ["", "No GPU took part: nothing here says anything about one."]
    return "\n".join([*lines, "", text[0], "-" * max(map(len, text)), *text[1:]])


def main() -> int:
    options = arguments().parse_args()
    if options.collect is not None:
        return building.collect(options.collect, options.python_version)
    known = facts()
    if not known["GPU"] and not options.dry_run:
        print("no NVIDIA GPU that torch can use; --dry-run does everything else", file=sys.stderr)
        return 2
    out = options.out or building.BUILD / time.strftime("%Y%m%d-%H%M%S")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    runner = run_all(options, known, out)
    text = summary(runner, known, out)
    (out / "summary.txt").write_text(text + "\n")
    steps = [vars(result) for result in runner.results]
    (out / "results.json").write_text(json.dumps({"machine": known, "steps": steps}, indent=1) + "\n")
    print(f"\nresults and logs: {out}\n\n{text}")
    return 1 if any(r.status in ("failed", "stopped") for r in runner.results) else 0
