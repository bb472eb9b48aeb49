"""Where the library comes from: a package that somebody built, a library built elsewhere, or a build here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import prebuilt, tools
from .machine import ROOT, find_nvcc, output
from .plan import Runner, Step

# A core of a Zen 5 compiles the library for one architecture in under ten minutes; the longest source of the
# C++ tests takes it one.
CONFIGURE, LIBRARY, TESTS = 60.0, 180.0, 180.0
ISAS = "avx2"
# Of a _C that lies anywhere.
ARCHITECTURES = (
    "import sys, importlib.util as u; s = u.spec_from_file_location('_C', sys.argv[1]); "
    "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.build_info()['cuda_architectures'])"
)


@dataclass(frozen=True)
class Built:
    """A folder that holds the package `attn` with its libraries, and device_tests where they were built."""

    package: Path | None
    device_tests: Path | None = None
    why_not: str = ""  # where a part is missing
    why_no_tests: str = ""


def neither(why: str) -> Built:
    return Built(None, None, why, why)


class Build:
    """One CMake build."""

    def __init__(self, runner: Runner, folder: Path, cores: str, environment: dict[str, str]) -> None:
        self.runner, self.folder, self.cores, self.environment = runner, folder, cores, environment
        self.cmake = [tools.program("cmake") or "cmake"]

    def configure(self, flags: dict[str, str]) -> bool:
        ninja = tools.program("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        arguments = [f"-D{name}={value}" for name, value in flags.items()]
        where = ["-S", str(ROOT), "-B", str(self.folder)]
        return self.step("configure", [*self.cmake, *where, *generator, *arguments], CONFIGURE)

    def make(self, name: str, limit: float, *targets: str) -> bool:
        command = [*self.cmake, "--build", str(self.folder), "-j", self.cores, "--target", *targets]
        return self.step(name, command, limit)

    def step(self, name: str, command: list[str], limit: float) -> bool:
        step = Step(name, command, limit, environment=self.environment, on_gpu=False)
        return self.runner.run(step).status == "ok"


def package(place: Path, libraries: list[Path]) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(
        ROOT / "python" / "attn", place / "attn", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for library in libraries:
        shutil.copy2(library, place / "attn")
    return place


def use_prebuilt(
    runner: Runner, found: prebuilt.Prebuilt, cores: str, environment: dict[str, str]
) -> Built | None:
    """The library is of any Python and torch; only _C, one source, is compiled for this Python."""
    lacking = tools.lacking_to_build()
    if lacking:
        runner.skip("prebuilt library", f"no {' and '.join(lacking)} to build _C with")
        return None
    flags = {
        "ATTN_CUDA": "OFF",
        "ATTN_CUDA_ARCHS_TEXT": found.architectures,
        "ATTN_CPU_ISAS": ISAS,
        "Python_EXECUTABLE": sys.executable,
    }
    build = Build(runner, tools.BUILD / "module", cores, environment)
    if not (build.configure(flags) and build.make("build _C", CONFIGURE, "_C")):
        return None
    place = package(tools.BUILD / "package", [found.library, *build.folder.glob("_C*.so")])
    why = "" if found.device_tests else "the prebuilt folder has none"
    return Built(place, found.device_tests, why_no_tests=why)


def kernel_flags(nvcc: str, architectures: str, gtest: Path | None, cutlass: Path | None) -> dict[str, str]:
    """CPU kernels for few instruction sets: they aren't tested here."""
    flags = {
        "CMAKE_CUDA_COMPILER": nvcc,
        "ATTN_CUDA": "ON",
        "ATTN_CUDA_ARCHS": architectures,
        "ATTN_CPU_ISAS": ISAS,
        "ATTN_TESTS": "ON" if gtest else "OFF",
        "Python_EXECUTABLE": sys.executable,
    }
    if gtest:
        flags["ATTN_GTEST_SOURCE"] = str(gtest)
    if cutlass:
        flags["CUTLASS_DIR"] = str(cutlass)
    return flags


def build_here(
    runner: Runner, known: dict[str, str], wheels: Path | None, environment: dict[str, str]
) -> Built:
    """Configures and compiles for this GPU."""
    nvcc = find_nvcc()
    if nvcc is None:
        return neither("no nvcc to build with; give --prebuilt or --package")
    lacking = tools.lacking_to_build()
    if lacking:
        return neither(f"no {' and '.join(lacking)} to build with; give --wheels or --package")
    gtest, cutlass = tools.googletest(wheels), tools.cutlass(wheels)
    flags = kernel_flags(nvcc, f"{known['capability'] or 90}-real", gtest, cutlass)
    build = Build(runner, tools.BUILD / "library", known["cores"], environment)
    if not build.configure(flags):
        return neither("configure failed")
    if not build.make("build", LIBRARY, "attn_ops", "_C"):
        return neither("build failed")
    libraries = [build.folder / "libattn_ops.so", *build.folder.glob("_C*.so")]
    place = package(tools.BUILD / "package", libraries)
    if not gtest:
        return Built(place, why_no_tests="no googletest; give --wheels")
    if not build.make("build C++ tests", TESTS, "device_tests"):
        return Built(place, why_no_tests="they were not built")
    return Built(place, build.folder / "tests" / "device" / "device_tests")


def build(
    runner: Runner,
    known: dict[str, str],
    wheels: Path | None,
    folder: Path | None,
    environment: dict[str, str],
) -> Built:
    """The prebuilt library where there is one of these sources for this GPU; else a build."""
    found = prebuilt.find(folder, known["capability"])
    if isinstance(found, prebuilt.Prebuilt):
        used = use_prebuilt(runner, found, known["cores"], environment)
        if used is not None:
            return used
    elif found:
        runner.skip("prebuilt library", found)
    return build_here(runner, known, wheels, environment)


def prebuild(folder: Path, architectures: str) -> int:
    """Fills `folder` for --prebuilt; needs nvcc, but neither a GPU nor a torch with CUDA."""
    nvcc, gtest = find_nvcc(), tools.googletest(None)
    lacking = [*tools.lacking_to_build(), *([] if nvcc else ["nvcc"])]
    if lacking or nvcc is None:
        print(f"--prebuild needs {' and '.join(lacking)}", file=sys.stderr)
        return 2
    hour = 3600.0
    runner = Runner(tools.BUILD / "prebuild", hour, dry=False)
    cores = str(len(os.sched_getaffinity(0)))
    build = Build(runner, tools.BUILD / "prebuild", cores, {"PATH": tools.beside_python()})
    targets = ["attn_ops", "_C", *(["device_tests"] if gtest else [])]
    if not build.configure(kernel_flags(nvcc, architectures, gtest, tools.cutlass(None))):
        return 1
    if not build.make("build", hour, *targets):
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for file in (build.folder / "libattn_ops.so", build.folder / "tests" / "device" / "device_tests"):
        if file.exists():
            shutil.copy2(file, folder)
            subprocess.run(["strip", "--strip-unneeded", str(folder / file.name)], check=False)
    (module,) = build.folder.glob("_C*.so")
    prebuilt.describe(folder, output(sys.executable, "-c", ARCHITECTURES, str(module)))
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {size / 2**20:.0f} MiB" + ("" if gtest else ", without device_tests: no googletest"))
    return 0
