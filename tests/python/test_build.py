"""What the built libraries may depend on and reveal: they have to run on another machine and under another
torch.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import attn

PACKAGE = Path(attn.__file__).parent
LIBRARIES = sorted(PACKAGE.glob("*.so"))

pytestmark = pytest.mark.skipif(
    shutil.which("nm") is None, reason="nm and readelf (binutils) read the libraries"
)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_both_libraries_are_installed():
    assert [path.name.split(".")[0] for path in LIBRARIES] == ["_C", "libattn_ops"]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_needs_only_torch_and_the_system(library):
    dynamic = run("readelf", "-d", str(library))
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    allowed = {
        "libtorch_cpu.so",
        "libc10.so",
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "libpthread.so.0",
    }
    allowed |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    # No libgomp of our own (torch brings its OpenMP), no libpython, no CUDA runtime.
    assert needed <= allowed
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_ops_use_only_the_stable_abi_of_the_target():
    """No C++ symbol of torch, and no function of its C shim that came after the release we target."""
    tool = Path(sys.executable).with_name("torch-abi-audit")
    audit = json.loads(run(str(tool), "--json", str(PACKAGE / "libattn_ops.so")))
    (library,) = audit["bundled_libs"]
    assert library["torch"]["unstable_symbols"] == []
    assert library["torch"]["unknown_shim_symbols"] == []
    assert library["torch"]["stable"]
    target = attn._C.build_info()["torch_stable_abi"]
    newest = library["torch"]["min_torch_version"]
    assert [int(n) for n in newest.split(".")[:2]] <= [int(n) for n in target.split(".")]


def test_ops_export_nothing():
    """Two extensions in one process must not see each other's symbols."""
    assert run("nm", "-D", "--defined-only", str(PACKAGE / "libattn_ops.so")) == ""


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name.split(".")[0])
def test_no_path_of_the_build_machine(library):
    data = library.read_bytes()
    places = {
        str(PACKAGE.parent),
        str(Path(torch.__file__).parent),
        sysconfig.get_path("purelib"),
        str(Path.home()) + "/",
    }
    places |= {str(Path(__file__).resolve().parents[2]), "/tmp/"}
    found = {place for place in places if place.encode() in data}
    assert found == set()


@pytest.fixture
def wheel(tmp_path):
    """The installed package as a wheel, with a name and further files of one's choice."""

    def make(name: str = "manylinux_2_35_x86_64", **more: Path) -> Path:
        path = tmp_path / f"attn-0.1.0-cp311-cp311-{name}.whl"
        files = [x for x in PACKAGE.rglob("*") if x.suffix in (".py", ".pyi", ".typed", ".so")]
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                if file.name not in more:
                    archive.write(file, file.relative_to(PACKAGE.parent))
            for place, file in more.items():
                archive.write(file, f"attn/{place}")
        return path

    return make


def test_audit_of_wheels(wheel, capsys):
    """scripts/audit_wheel.py (`make wheel`) passes what we build and finds what must not be published."""
    script = Path(__file__).resolve().parents[2] / "scripts/audit_wheel.py"
    spec = importlib.util.spec_from_file_location("audit_wheel", script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    assert tool.audit(wheel(), 200) == []
    assert "manylinux" in " ".join(tool.audit(wheel("linux_x86_64"), 200))
    assert "allowed are 1" in " ".join(tool.audit(wheel(), 1))
    assert tool.audit(wheel(**{"test.cpp": script}), 200) == ["attn/test.cpp has no place in a wheel"]
    (found,) = Path(torch.__file__).parent.glob("lib/libtorch_python.so")
    faults = tool.library_faults(found)
    assert any("stable ABI" in fault for fault in faults)
    faults = " ".join(tool.audit(wheel(**{"libattn_ops.so": LIBRARIES[0]}), 200))
    assert "uses nothing of torch" in faults
    assert "exports PyInit__C" in faults


def test_sdist_holds_the_sources_and_nothing_built(tmp_path):
    pytest.importorskip("scikit_build_core", reason="needs scikit-build-core (the extra `dev`)")
    root = Path(__file__).resolve().parents[2]
    code = f"import sys; sys.path[:0] = ['tools']; from attn_build import *; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    (archive,) = tmp_path.glob("attn-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc")) or name.startswith("build/")]
    needed = [root / name for name in ("CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md")]
    for folder in ("cmake", "csrc", "include", "python", "tools"):
        needed += [path for path in (root / folder).rglob("*") if path.is_file()]
    made = {".so", ".pyc"}
    wanted = {path.relative_to(root).as_posix() for path in needed if path.suffix not in made}
    assert wanted <= names
