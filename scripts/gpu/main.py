"""What scripts/gpu_check does, in order."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

from . import build as building
from . import prebuilt, tools
from .machine import ROOT, facts
from .plan import NOT_RUN, Result, Runner, Step

# Of pytest and of gtest.
PASSED = r"[1-9]\d* passed|\[  PASSED  \] [1-9]"
# The whole run stays under 9 minutes.
SECONDS = 535.0
# Kept back for what comes after each part.
FOR_BENCHMARK = 130.0
SANITIZED = "*SchedulesAndModifiers*:*SizesAroundTiles*:SimtMergeStates/0.*"
SANITIZED_PYTHON = (
    "anything or (test_case and bfloat16 and (everything or packed_unequal or tiles_odd or head_dim_31))"
)
EPILOG = """
No network is used. What is missing on the machine (cmake, ninja, pybind11, pytest, pytest-xdist, hypothesis,
googletest, CUTLASS's headers) comes from a folder that --collect fills on a machine with network; what can't
be built there, or would take too long, from one that --prebuild fills on a machine with nvcc. One in
build/prebuilt is taken without being named; one of other sources is not taken. Results: FOLDER/summary.txt,
results.json, benchmark.json, log.txt, logs/. Exit status: 0 all that ran was right, 1 something failed, 2
there is no GPU.
"""


def place(text: str) -> Path:
    return Path(text).resolve()  # steps run in the root of the sources


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check",
        description="Builds, tests and times attn on a machine with an NVIDIA GPU, in at most 9 minutes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=place, metavar="FOLDER", help="default: build/gpu_check/<time>")
    parser.add_argument("--package", type=place, help="folder that holds a built `attn`, instead of building")
    parser.add_argument("--device-tests", type=place, help="built device_tests that go with --package")
    parser.add_argument("--wheels", type=place, help="folder of --collect")
    parser.add_argument(
        "--prebuilt", type=place, help="folder of --prebuild; default: build/prebuilt, if there"
    )
    parser.add_argument(
        "--collect", type=place, metavar="FOLDER", help="download what --wheels takes, and stop"
    )
    parser.add_argument(
        "--prebuild",
        type=place,
        metavar="FOLDER",
        nargs="?",
        const=prebuilt.DEFAULT,
        help="build what --prebuilt takes, and stop",
    )
    parser.add_argument(
        "--archs", default="90-real", help="of --prebuild, as ATTN_CUDA_ARCHS (default: %(default)s)"
    )
    parser.add_argument("--commit", help="what the results are of, where the sources came without .git")
    parser.add_argument("--python-version", default="3.12", help="of the machine --collect is for")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--dry-run", action="store_true", help="everything but what needs the GPU")
    return parser


def sanitizer(tool: str, command: list[str], limit: float, environment: dict[str, str], why: str) -> Step:
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    whole = [found or "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *command]
    missing = why or ("" if found else "compute-sanitizer is not installed")
    return Step(f"compute-sanitizer {tool}", whole, limit, 20, environment, why_not=missing, says=PASSED)


def python_steps(environment: dict[str, str]) -> list[Step]:
    """The device tests, and a few where each tensor is its own allocation: accesses outside are seen."""
    lacking = [name for name in tools.missing_tools() if name in tools.NEEDED_TO_TEST]
    why = f"no {' and '.join(lacking)}; give --wheels" if lacking else ""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/python/test_cuda_device.py"]
    found = Step(
        "python tests found",
        [*command, "-q", "--collect-only"],
        90,
        environment=environment,
        on_gpu=False,
        why_not=why,
    )
    apart = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    # A worker whose GPU a kernel has broken is replaced; names are printed as they come, should time run out.
    workers = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    shown = ["-v", "-rf", "--tb=short"]
    return [
        found,
        Step(
            "python tests",
            [*command, *shown, *workers],
            200,
            30,
            environment,
            why_not=why,
            says=PASSED,
        ),
        sanitizer("memcheck", [*command, "-q", "-k", SANITIZED_PYTHON], 100, apart, why),
    ]


def device_steps(built: building.Built) -> list[Step]:
    """The C++ tests of tests/simt on the GPU, and a few of them under compute-sanitizer."""
    tests, why = str(built.device_tests), built.why_no_tests
    few = [tests, f"--gtest_filter={SANITIZED}", "--gtest_brief=1"]
    each = [sys.executable, str(Path(__file__).with_name("suites.py")), tests]
    return [
        Step("C++ tests", each, 90, why_not=why, says="all passed"),
        *(sanitizer(tool, few, 45, {}, why) for tool in ("racecheck", "synccheck")),
    ]


def benchmark_steps(environment: dict[str, str], out: Path, seconds: float) -> list[Step]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    cases = Step("benchmark cases", [*command, "--list"], 60, environment=environment, on_gpu=False)
    command += ["--json", str(out / "benchmark.json"), "--seconds", f"{max(seconds - 40, 10):.0f}"]
    return [cases, Step("benchmark", command, seconds, 30, environment)]


def what_was_built(runner: Runner, known: dict[str, str]) -> None:
    """Says for which GPUs the package has kernels, and whether some of this one's are missing."""
    text = Path(runner.results[-1].log).read_text(errors="replace")
    found = re.search(r"CUDA architectures\s+(.*)", text)
    known["kernels for"] = found[1].strip() if found else "unknown"
    if known["capability"] == "90" and "90a" not in known["kernels for"]:
        runner.skip("kernels of sm_90a", "not built: no CUTLASS headers; give --wheels or CUTLASS_DIR")


def run_all(options: argparse.Namespace, known: dict[str, str], out: Path, began: float) -> Runner:
    runner = Runner(out, options.seconds - (time.monotonic() - began), options.dry_run)
    environment = tools.install_tools(runner, options.wheels)
    if options.package is not None:
        tests = options.device_tests
        why = "" if tests else "no --device-tests with --package"
        built = building.Built(options.package, tests, why_no_tests=why)
    else:
        built = building.build(runner, known, options.wheels, options.prebuilt, environment)
        if built.package is None:
            runner.skip("everything on the GPU", built.why_not)
            return runner
    paths = [str(built.package), str(ROOT / "tests" / "python"), environment.get("PYTHONPATH", "")]
    environment = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    info = [sys.executable, "-m", "attn", "info"]
    if runner.run(Step("the package loads", info, 60, environment=environment, on_gpu=False)).status != "ok":
        runner.skip("everything on the GPU", "the package does not load")
        return runner
    what_was_built(runner, known)
    # Tests keep back the time that the benchmark needs.
    end, runner.end = runner.end, runner.end - FOR_BENCHMARK
    on_device, in_python = device_steps(built), python_steps(environment)
    # What says most first; what compute-sanitizer sees last.
    for step in (in_python[0], on_device[0], *in_python[1:], *on_device[1:]):
        runner.run(step)
    runner.end = end
    for step in benchmark_steps(environment, out, runner.left() - 5):
        runner.run(step)
    return runner


def bars(file: Path) -> list[list[str]]:
    """What was asked of each case of the benchmark that has a bar, as rows of the last table."""
    if not file.exists():
        return []
    rows = []
    for case in json.loads(file.read_text())["rows"]:
        if case["bar"] is None:
            continue
        ratio = case["ratio"]
        result = "not run" if ratio is None else "met" if ratio >= case["bar"] else "NOT MET"
        got = case["note"] if ratio is None else f"{ratio:.2f}x"
        rows.append([f"bar: {case['case']}", result, "", f"{got}, asked: {case['bar']:g}x"])
    return rows


def summary(runner: Runner, known: dict[str, str], out: Path) -> str:
    lines = [f"{name:<12} {value or 'none'}" for name, value in known.items()]
    benchmark = out / "logs" / "benchmark.log"
    if benchmark.exists():
        lines += ["", benchmark.read_text(errors="replace").rstrip()]
    head = ["step", "result", "seconds", "last line"]
    rows = [[r.name, r.status, f"{r.seconds:.1f}", r.detail] for r in runner.results]
    rows += bars(out / "benchmark.json")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    text = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    skipped = [r.name for r in runner.results if r.status == NOT_RUN]
    if skipped:
        lines += ["", "NOT EXECUTED: " + ", ".join(skipped)]
    if not known["GPU"]:
        lines += ["", "No GPU took part: nothing here says anything about one."]
    return "\n".join([*lines, "", text[0], "-" * max(map(len, text)), *text[1:]])


def shortened(result: Result, most: int = 300_000) -> str:
    """A step's output for the one file of all; the end of a long one."""
    text = Path(result.log).read_text(errors="replace")[-most:] if result.log else result.detail
    return f"===== {result.name}: {result.status}\n{text.rstrip()}\n\n"


def main() -> int:
    began = time.monotonic()
    options = arguments().parse_args()
    if options.collect is not None:
        return tools.collect(options.collect, options.python_version)
    if options.prebuild is not None:
        return building.prebuild(options.prebuild, options.archs)
    known = facts()
    if options.commit:
        known["commit"] = options.commit
    if not known["GPU"] and not options.dry_run:
        print("no NVIDIA GPU that torch can use; --dry-run does everything else", file=sys.stderr)
        return 2
    out = options.out or tools.BUILD / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    runner = run_all(options, known, out, began)
    text = summary(runner, known, out)
    (out / "summary.txt").write_text(text + "\n")
    steps = [vars(result) for result in runner.results]
    (out / "results.json").write_text(json.dumps({"machine": known, "steps": steps}, indent=1) + "\n")
    (out / "log.txt").write_text("".join(shortened(result) for result in runner.results))
    print(f"\nresults and logs: {out}\n\n{text}")
    return 1 if any(r.status in ("failed", "stopped") for r in runner.results) else 0
