"""audit_wheel.py WHEEL [--max-mb N]: whether a wheel may be published; if not, the reasons and status 1.

- its tag says on which systems it runs: manylinux, as `auditwheel repair` found (`make wheel`);
- the op library uses torch through its stable ABI only, and exports nothing;
- nothing is in it but the package, and it is not larger than it should be.

Reads the archive and the symbols; the wheel need not be installable here. Needs binutils (nm).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# C functions of torch's stable ABI; all else that torch defines is C++ and changes with every release.
STABLE = re.compile(r"^(aoti_torch_|torch_)\w+$")
# Mangled names of torch's own namespaces: at, c10, torch, caffe2.
UNSTABLE = re.compile(r"^_Z(?:T[VIST])?N?[KVOR]*(?:2at|3c10|5torch|6caffe2)")
TAG = re.compile(r"^attn-[\w.]+-cp3\d+-cp3\d+-(?:manylinux_2_\d+_\w+\.?)+\.whl$")
FILES = re.compile(
    r"^attn/(?:[\w/]+\.pyi?|py\.typed|libattn_ops\.so|_C\.cpython-[\w-]+\.so)$|^attn-[\w.]+\.dist-info/"
)


def symbols(library: Path, *flags: str) -> list[str]:
    listing = subprocess.run(
        ["nm", "-D", "--format=posix", *flags, str(library)], capture_output=True, text=True, check=True
    )
    return [line.split()[0].split("@")[0] for line in listing.stdout.splitlines()]


def library_faults(library: Path) -> list[str]:
    undefined = symbols(library, "--undefined-only")
    faults = [
        f"{library.name} uses {name}, which is not in torch's stable ABI"
        for name in undefined
        if UNSTABLE.match(name)
    ]
    if library.name == "libattn_ops.so":
        if not any(STABLE.match(name) for name in undefined):
            faults.append(f"{library.name} uses nothing of torch: not the library that was meant")
        faults += [f"{library.name} exports {name}" for name in symbols(library, "--defined-only")]
    elif any(STABLE.match(name) for name in undefined):
        faults.append(f"{library.name} uses torch; only libattn_ops.so should")
    return faults


def audit(wheel: Path, max_mb: float) -> list[str]:
    faults = []
    if not TAG.match(wheel.name):
        faults.append(f"{wheel.name}: the tag must be manylinux; run auditwheel repair (make wheel)")
    megabytes = wheel.stat().st_size / 1e6
    if megabytes > max_mb:
        faults.append(f"{megabytes:.1f} MB, allowed are {max_mb:g} (--max-mb)")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        faults += [f"{name} has no place in a wheel" for name in names if not FILES.match(name)]
        if "attn/py.typed" not in names:
            faults.append("attn/py.typed is missing: type checkers would ignore the annotations")
        libraries = [name for name in names if name.endswith(".so")]
        if sorted(Path(name).name.split(".")[0] for name in libraries) != ["_C", "libattn_ops"]:
            faults.append(f"libraries must be _C and libattn_ops, got {libraries}")
        for name in libraries:
            faults += library_faults(Path(archive.extract(name, folder)))
        size = sum(info.file_size for info in archive.infolist()) / 1e6
    print(f"{wheel.name}: {megabytes:.1f} MB, {size:.1f} MB installed, {len(names)} files")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument(
        "--max-mb", type=float, default=30.0, help="size allowed, of the archive (default 30)"
    )
    options = parser.parse_args()
    faults = audit(options.wheel, options.max_mb)
    print("\n".join(faults) if faults else "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
