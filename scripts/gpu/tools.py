"""What a build and its tests need besides torch, nvcc and g++, and how it gets where no network is."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from .machine import ROOT
from .plan import Runner, Step

BUILD = ROOT / "build" / "gpu_check"
# Package -> module.
TOOLS = {
    "cmake": "cmake",
    "ninja": "ninja",
    "pybind11": "pybind11",
    "pytest": "pytest",
    "pytest-xdist": "xdist",
    "hypothesis": "hypothesis",
}
NEEDED_TO_BUILD = ("cmake", "pybind11")
NEEDED_TO_TEST = ("pytest", "hypothesis")
CUTLASS = "cutlass.zip"


def beside_python() -> str:
    """PATH with the programs that came with this Python (`ninja`), which may not be activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([beside_python(), str(BUILD / "tools" / "bin")]))


def missing_tools() -> list[str]:
    return [
        name
        for name, module in TOOLS.items()
        if importlib.util.find_spec(module) is None and not (name in ("cmake", "ninja") and program(name))
    ]


def lacking_to_build() -> list[str]:
    """What keeps anything from being compiled for this Python."""
    lacking = [name for name in missing_tools() if name in NEEDED_TO_BUILD]
    if not program("g++") and not program("c++") and not os.environ.get("CXX"):
        lacking.append("g++")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacking.append("Python.h (Debian: python3-dev)")
    return lacking


def collect(folder: Path, python: str) -> int:
    """On a machine with network: what `--wheels` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    only = ["--only-binary", ":all:", "--python-version", python, "--platform", "manylinux_2_28_x86_64"]
    only += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_17_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *only, *TOOLS]
    code = subprocess.run(command, check=False).returncode
    if code:
        return code
    found = printed(ROOT / "scripts" / "googletest.py")
    if found:
        shutil.copytree(found, folder / "googletest", dirs_exist_ok=True)
    cutlass = printed(ROOT / "cmake" / "cutlass_path.py")
    if cutlass:
        shutil.make_archive(str((folder / CUTLASS).with_suffix("")), "zip", cutlass)
    else:
        print("no CUTLASS here, so none is collected: pip install nvidia-cutlass==4.2.0.0, or CUTLASS_DIR")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: {size / 2**20:.0f} MiB")
    return 0 if found and cutlass else 1


def printed(script: Path) -> str:
    command = [sys.executable, str(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def install_tools(runner: Runner, wheels: Path | None) -> dict[str, str]:
    """Environment under which the tools are found."""
    missing = missing_tools()
    if not missing or wheels is None:
        return {"PATH": beside_python()}
    place = BUILD / "tools"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--find-links", str(wheels)]
    command += ["--upgrade", "--target", str(place), *missing]
    runner.run(Step("tools", command, 60, on_gpu=False))
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    return {"PYTHONPATH": str(place), "PATH": f"{place / 'bin'}{os.pathsep}{beside_python()}"}


def googletest(wheels: Path | None) -> Path | None:
    deps = ROOT / "build" / "deps"
    places = [Path("/usr/src/googletest"), deps / "debian/usr/src/googletest", deps / "googletest-1.14.0"]
    if wheels is not None:
        places.insert(0, wheels / "googletest")
    return next((p for p in places if (p / "googletest" / "src" / "gtest-all.cc").exists()), None)


def cutlass(wheels: Path | None) -> Path | None:
    """CUTLASS's headers: those collected, else where the build itself looks."""
    if wheels is not None and (wheels / CUTLASS).exists():
        shutil.unpack_archive(wheels / CUTLASS, BUILD / "cutlass")
        return BUILD / "cutlass"
    found = printed(ROOT / "cmake" / "cutlass_path.py")
    return Path(found) if found else None
