"""scripts/gpu_check as far as it goes without a GPU: its dry run, and steps that go wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from gpu.plan import Runner, Step  # noqa: E402

NEEDS_GPU = {"python tests", "C++ tests", "benchmark", "compute-sanitizer memcheck"}


def gpu_check(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dry_run(tmp_path):
    package = str(Path(attn.__file__).parents[1])
    done = gpu_check(
        "--dry-run", "--package", package, "--device-tests", "/device_tests", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = {s["name"]: s for s in json.loads((tmp_path / "results.json").read_text())["steps"]}
    skipped = {name for name, step in steps.items() if step["status"] == "not run"}
    assert skipped >= NEEDS_GPU
    ran = {name for name in steps if name not in skipped}
    assert ran == {"the package loads", "python tests found", "benchmark cases"}
    assert all(steps[name]["status"] == "ok" for name in ran)
    # The table is the last thing printed, and what did not happen is said.
    assert done.stdout.rstrip().splitlines()[-1].startswith("benchmark ")
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("NOT EXECUTED: ")]
    assert all(name in said for name in NEEDS_GPU)
    assert "No GPU took part" in done.stdout
    assert (tmp_path / "summary.txt").read_text().strip() in done.stdout
    assert "would run: /device_tests --gtest_brief=1" in done.stdout
    cases = (tmp_path / "logs" / "benchmark_cases.log").read_text()
    assert "dense causal forward" in cases


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    done = gpu_check()
    assert done.returncode == 2
    assert "no NVIDIA GPU" in done.stderr


def python(name: str, code: str, limit: float = 60, **options) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, **options)


def test_steps_that_go_wrong(tmp_path):
    runner = Runner(tmp_path, 60, dry=False)
    assert runner.run(python("right", "print('one'); print('two')")).status == "ok"
    assert runner.run(python("wrong", "print('why'); raise SystemExit(3)")).status == "failed"
    assert runner.run(python("slow", "import time; time.sleep(60)", limit=0.5)).status == "stopped"
    assert runner.run(python("lacking", "", why_not="no tool")).detail == "no tool"
    runner.end = 0
    assert runner.run(python("late", "")).detail == "no time left"
    assert [r.detail for r in runner.results[:2]] == ["two", "why"]
    assert (tmp_path / "logs" / "right.log").read_text() == "one\ntwo\n"
