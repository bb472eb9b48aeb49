"""scripts/gpu_check as far as it goes without a GPU: its dry run, and steps that go wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from gpu import build, main, prebuilt, suites, tools  # noqa: E402
from gpu.plan import Runner, Step  # noqa: E402

DEVICE_TESTS = ROOT / "tests" / "device" / "CMakeLists.txt"
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
    assert "===== benchmark cases: ok" in (tmp_path / "log.txt").read_text()
    assert all(steps[name]["status"] == "ok" for name in ran)
    # The table is the last thing printed, and what did not happen is said.
    assert done.stdout.rstrip().splitlines()[-1].startswith("benchmark ")
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("NOT EXECUTED: ")]
    assert all(name in said for name in NEEDS_GPU)
    assert "No GPU took part" in done.stdout
    assert (tmp_path / "summary.txt").read_text().strip() in done.stdout
    assert "suites.py /device_tests" in done.stdout
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
    for text, status in (("3 skipped", "failed"), ("0 passed", "failed"), ("12 passed, 3 skipped", "ok")):
        assert runner.run(python("tests", f"print({text!r})", says=main.PASSED)).status == status
    assert runner.results.pop().detail == "12 passed, 3 skipped"
    runner.end = 0
    assert runner.run(python("late", "")).detail == "no time left"
    assert [r.detail for r in runner.results[:2]] == ["two", "why"]
    assert (tmp_path / "logs" / "right.log").read_text() == "one\ntwo\n"
    assert runner.run(Step("no such", ["/no/such/program"], 10, on_gpu=False)).status == "not run"


def test_tests_to_sanitize_are_found():
    """What is chosen by name exists."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-k", main.SANITIZED_PYTHON]
    done = subprocess.run(
        [*command, "tests/python/test_cuda_device.py"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout
    sources = "".join(file.read_text() for file in (ROOT / "tests" / "simt").glob("*_test.cpp"))
    for pattern in main.SANITIZED.split(":"):
        assert pattern.strip("*").split("/")[0] in sources, pattern


def available(monkeypatch, **changes):
    """A machine with all that a build wants, but for what is given as missing."""
    have = {
        "nvcc": "/bin/nvcc",
        "lacking": [],
        "gtest": Path("/gtest"),
        "cutlass": Path("/cutlass"),
    } | changes
    monkeypatch.setattr(build, "find_nvcc", lambda: have["nvcc"])
    monkeypatch.setattr(tools, "lacking_to_build", lambda: have["lacking"])
    monkeypatch.setattr(tools, "googletest", lambda wheels: have["gtest"])
    monkeypatch.setattr(tools, "cutlass", lambda wheels: have["cutlass"])
    monkeypatch.setattr(prebuilt, "find", lambda folder, capability: changes.get("prebuilt", ""))


class Recording(Runner):
    """Notes commands; those whose name is in `wrong` fail."""

    def __init__(self, folder, wrong=()):
        super().__init__(folder, 60, dry=False)
        self.commands, self.wrong = {}, wrong

    def run(self, step):
        self.commands[step.name] = step.command
        code = "raise SystemExit(1)" if step.name in self.wrong else ""
        return super().run(python(step.name, code, on_gpu=False))


KNOWN = {"capability": "90", "cores": "16", "GPU": "of paper"}


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A place to build in, with the libraries as if they had been built."""
    monkeypatch.setattr(tools, "BUILD", tmp_path)
    for folder in ("library", "module"):
        (tmp_path / folder).mkdir()
        for name in ("libattn_ops.so", "_C.cpython-312.so"):
            (tmp_path / folder / name).write_text(folder)
    return tmp_path


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ({"nvcc": None}, "no nvcc to build with; give --prebuilt or --package"),
        ({"lacking": ["cmake", "g++"]}, "no cmake and g++ to build with; give --wheels or --package"),
    ],
)
def test_nothing_to_build_with(missing, why, workshop, monkeypatch):
    available(monkeypatch, **missing)
    built = build.build(Recording(workshop), KNOWN, None, None, {})
    assert (built.package, built.why_not, built.why_no_tests) == (None, why, why)


def test_a_build(workshop, monkeypatch):
    available(monkeypatch)
    runner = Recording(workshop)
    built = build.build(runner, KNOWN, None, None, {})
    assert list(runner.commands) == ["configure", "build", "build C++ tests"]
    assert {"-DATTN_CUDA_ARCHS=90-real", "-DCUTLASS_DIR=/cutlass", "-DATTN_TESTS=ON"} < set(
        runner.commands["configure"]
    )
    assert built.device_tests == workshop / "library" / "tests" / "device" / "device_tests"
    assert sorted(file.name for file in (built.package / "attn").glob("*.so")) == [
        "_C.cpython-312.so",
        "libattn_ops.so",
    ]
    assert (built.package / "attn" / "__init__.py").exists()


def test_what_a_build_can_do_without(workshop, monkeypatch):
    available(monkeypatch, gtest=None, cutlass=None)
    runner = Recording(workshop)
    built = build.build(runner, KNOWN, None, None, {})
    assert list(runner.commands) == ["configure", "build"]
    assert "-DATTN_TESTS=OFF" in runner.commands["configure"]
    assert built.why_no_tests == "no googletest; give --wheels"
    available(monkeypatch)
    built = build.build(Recording(workshop, wrong=["build C++ tests"]), KNOWN, None, None, {})
    assert built.package
    assert built.why_no_tests == "they were not built"
    built = build.build(Recording(workshop, wrong=["build"]), KNOWN, None, None, {})
    assert (built.package, built.why_not) == (None, "build failed")


def test_a_prebuilt_library(workshop, monkeypatch):
    """Only _C is built; where it can't be, the library is built after all."""
    library = workshop / "libattn_ops.so"
    library.write_text("elsewhere")
    found = prebuilt.Prebuilt(library, None, "90-real 90a-real")
    available(monkeypatch, prebuilt=found, nvcc=None)
    runner = Recording(workshop)
    built = build.build(runner, KNOWN, None, None, {})
    assert list(runner.commands) == ["configure", "build _C"]
    assert "-DATTN_CUDA_ARCHS_TEXT=90-real 90a-real" in runner.commands["configure"]
    assert (built.package / "attn" / "libattn_ops.so").read_text() == "elsewhere"
    assert built.why_no_tests == "the prebuilt folder has none"
    available(monkeypatch, prebuilt=found)
    runner = Recording(workshop, wrong=["build _C"])
    assert build.build(runner, KNOWN, None, None, {}).package
    assert list(runner.commands) == ["configure", "build _C", "build", "build C++ tests"]


def test_which_prebuilt_library_is_taken(tmp_path):
    assert prebuilt.find(None, "90") == "" or prebuilt.DEFAULT.exists()
    assert "holds no libattn_ops.so" in prebuilt.find(tmp_path, "90")
    for name in ("libattn_ops.so", "device_tests"):
        (tmp_path / name).write_text("")
    prebuilt.describe(tmp_path, "80-real 90-real 90a-real")
    found = prebuilt.find(tmp_path, "90")
    assert found == prebuilt.Prebuilt(
        tmp_path / "libattn_ops.so", tmp_path / "device_tests", "80-real 90-real 90a-real"
    )
    assert "this GPU is sm_100" in prebuilt.find(tmp_path, "100")
    facts = json.loads((tmp_path / "built.json").read_text())
    (tmp_path / "built.json").write_text(json.dumps(facts | {"digest": "of others"}))
    assert "was built from other sources" in prebuilt.find(tmp_path, "90")


@pytest.mark.parametrize(
    ("architectures", "capability", "answer"),
    [
        ("80-real", "86", True),
        ("86-real", "80", False),
        ("80-real", "90", False),
        ("80-real 90", "100", True),
        ("80-real 90-real", "100", False),
        ("90a-real", "90", False),
        ("100-real", "103", True),
    ],
)
def test_which_gpus_an_architecture_serves(architectures, capability, answer):
    assert prebuilt.serves(architectures, capability) == answer


FAKE_TESTS = """#!/bin/sh
case "$*" in
*--gtest_list_tests*) printf 'Running\\nGood/0.  # TypeParam = X\\n  One\\n  Two\\nBroken.\\n  Three\\n' ;;
*Broken*) echo 'illegal memory access'; exit 1 ;;
*Good/0.One:Good/0.Two*) echo fine ;;
*) exit 3 ;;
esac
"""


def test_suites_of_cpp_tests(tmp_path, monkeypatch, capsys):
    """Each in a process of its own: a broken one doesn't take the others with it."""
    tests = tmp_path / "device_tests"
    tests.write_text(FAKE_TESTS)
    tests.chmod(0o755)
    assert suites.suites(str(tests), "*") == {"Good/0.": ["One", "Two"], "Broken.": ["Three"]}
    monkeypatch.setattr(sys, "argv", ["suites.py", str(tests)])
    assert suites.main() == 1
    shown = capsys.readouterr().out
    assert "== Good/0: ok\nfine" in shown
    assert "== Broken: exit status 1\nillegal memory access" in shown
    assert shown.rstrip().endswith("3 tests in 2 suites, failed: Broken")


def test_missing_kernels_for_hopper_are_said(tmp_path):
    for architectures, said in (("90-real", True), ("90-real 90a-real", False)):
        runner = Runner(tmp_path, 60, dry=False)
        runner.run(
            python("the package loads", f"print('CUDA architectures   {architectures}')", on_gpu=False)
        )
        known = dict(KNOWN)
        main.what_was_built(runner, known)
        assert known["kernels for"] == architectures
        assert ("kernels of sm_90a" in {result.name for result in runner.results}) == said


def test_bars_are_in_the_last_table(tmp_path):
    rows = [
        {"case": "a", "bar": 0.9, "ratio": 1.0, "note": ""},
        {"case": "b", "bar": 7.0, "ratio": 6.5, "note": ""},
        {"case": "c", "bar": 8.0, "ratio": None, "note": "not run: no time left"},
        {"case": "d", "bar": None, "ratio": 2.0, "note": ""},
    ]
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    text = main.summary(Runner(tmp_path, 60, dry=False), {"GPU": "of paper"}, tmp_path)
    shown = [" ".join(line.split()) for line in text.splitlines()[-3:]]
    assert shown == [
        "bar: a met 1.00x, asked: 0.9x",
        "bar: b NOT MET 6.50x, asked: 7x",
        "bar: c not run not run: no time left, asked: 8x",
    ]


def test_every_kernel_is_tested_on_the_device():
    """tests/device compiles what tests/simt runs, but for the tests of the runner itself."""
    simt = {file.name.removesuffix("_test.cpp") for file in (ROOT / "tests" / "simt").glob("*_test.cpp")}
    listed = re.findall(r"^set\(tests(?:_sm90a)? (.*)\)", DEVICE_TESTS.read_text(), re.MULTILINE)
    assert {name for line in listed for name in line.split()} == simt - {"async", "runner"}
