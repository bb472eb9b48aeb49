"""Where library and tools come from: a package that somebody built, or a build here without network."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .machine import ROOT, find_nvcc
from .plan import Runner, Step

# What a machine without network may lack, and where it is found once installed from --wheels.
TOOLS = {
    "cmake": "cmake",
    "ninja": "ninja",
    "pybind11": "pybind11",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
}
BUILD = ROOT / "build" / "gpu_check"


@dataclass(frozen=True)
class Built:
    """A folder that holds the package `attn` with its libraries, and device_tests where they were built."""

    package: Path | None
    device_tests: Path | None
    why_not: str = ""  # where a part is missing
    why_no_tests: str = ""


def missing_tools() -> list[str]:
    return [
        name
        for name, module in TOOLS.items()
        if importlib.util.find_spec(module) is None
        and (name not in ("cmake", "ninja") or not shutil.which(name))
    ]


def collect(folder: Path, python: str) -> int:
    """On a machine with network: what `--wheels` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    only = ["--only-binary", ":all:", "--python-version", python, "--platform", "manylinux_2_28_x86_64"]
    only += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *only, *TOOLS]
    code = subprocess.run(command, check=False).returncode
    if code:
        return code
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "googletest.py")],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if found.returncode == 0:
        shutil.copytree(found.stdout.strip(), folder / "googletest", dirs_exist_ok=True)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: {size / 2**20:.0f} MiB")
    return found.returncode


def install_tools(runner: Runner, wheels: Path | None) -> dict[str, str]:
    """Environment under which the tools are found."""
    missing = missing_tools()
    if not missing or wheels is None:
        return {}
    place = BUILD / "tools"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", str(wheels)]
    command += ["--upgrade", "--target", str(place), *missing]
    runner.run(Step("tools", command, 60, on_gpu=False))
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    return {"PYTHONPATH": str(place), "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}


def googletest(wheels: Path | None) -> Path | None:
    places = [Path("/usr/src/googletest"), ROOT / "build" / "deps" / "googletest-1.14.0"]
    if wheels is not None:
        places.insert(0, wheels / "googletest")
    return next((p for p in places if (p / "googletest" / "src" / "gtest-all.cc").exists()), None)


def build(runner: Runner, facts: dict[str, str], wheels: Path | None, environment: dict[str, str]) -> Built:
    """Configures and compiles for this GPU; CPU kernels for one instruction set, they aren't tested."""
    nvcc = find_nvcc()
    if nvcc is None:
        return Built(None, None, "no nvcc to build with; give --package", "no nvcc")
    lacking = [name for name in missing_tools() if name in ("cmake", "pybind11")]
    if lacking:
        why = f"no {' and '.join(lacking)} to build with; give --wheels or --package"
        return Built(None, None, why, why)
    gtest = googletest(wheels)
    flags = {
        "CMAKE_CUDA_COMPILER": nvcc,
        "ATTN_CUDA": "ON",
        "ATTN_CUDA_ARCHS": f"{facts['capability'] or 90}-real",
        "ATTN_CPU_ISAS": "avx2",
        "ATTN_TESTS": "ON" if gtest else "OFF",
        "Python_EXECUTABLE": sys.executable,
    }
    if gtest:
        flags["ATTN_GTEST_SOURCE"] = str(gtest)
    cmake = [sys.executable, "-m", "cmake"] if importlib.util.find_spec("cmake") else ["cmake"]
    generator = ["-G", "Ninja"] if "ninja" not in missing_tools() else []
    arguments = [f"-D{name}={value}" for name, value in flags.items()]
    configure = [*cmake, "-S", str(ROOT), "-B", str(BUILD), *generator, *arguments]
    compiling = [*cmake, "--build", str(BUILD), "-j", facts["cores"], "--target"]
    for name, command, limit in (
        ("configure", configure, 60.0),
        ("build", [*compiling, "attn_ops", "_C"], 240.0),
    ):
        if runner.run(Step(name, command, limit, environment=environment, on_gpu=False)).status != "ok":
            return Built(None, None, f"{name} failed", f"{name} failed")
    package = BUILD / "package"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(
        ROOT / "python" / "attn", package / "attn", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for library in (BUILD / "libattn_ops.so", *BUILD.glob("_C*.so")):
        shutil.copy2(library, package / "attn")
    if not gtest:
        return Built(package, None, why_no_tests="no googletest; give --wheels")
    step = Step("build C++ tests", [*compiling, "device_tests"], 120, environment=environment, on_gpu=False)
    if runner.run(step).status != "ok":
        return Built(package, None, why_no_tests="they were not built")
    return Built(package, BUILD / "tests" / "device" / "device_tests")
