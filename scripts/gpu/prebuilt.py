"""A library and device_tests that were built on a machine without a GPU: `--prebuild` makes the folder that
`--prebuilt` takes. libattn_ops.so depends neither on the version of Python nor on that of torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from .machine import ROOT, commit

DEFAULT = ROOT / "build" / "prebuilt"
FACTS = "built.json"
# What the two files are made of.
SOURCES = ("CMakeLists.txt", "cmake", "csrc", "include", "tests/cpp", "tests/device", "tests/simt")


@dataclass(frozen=True)
class Prebuilt:
    library: Path
    device_tests: Path | None
    architectures: str


def digest() -> str:
    found = hashlib.sha256()
    for name in SOURCES:
        place = ROOT / name
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(file.relative_to(ROOT).as_posix().encode() + b"\0")
                found.update(file.read_bytes() + b"\0")
    return found.hexdigest()


def serves(architectures: str, capability: str) -> bool:
    """Code for X.Y runs on X.Z with Z >= Y (90a: on 9.0 alone), PTX on everything from X.Y on."""
    major, minor = int(capability[:-1]), int(capability[-1])
    for text in architectures.split():
        match = re.fullmatch(r"(\d+)(\d)(-real)?", text)
        if match is None:
            continue
        code = int(match[1]), int(match[2])
        if (code[0] == major and code[1] <= minor) or (not match[3] and code <= (major, minor)):
            return True
    return False


def find(folder: Path | None, capability: str) -> Prebuilt | str:
    """The folder's library, or why it can't be used; empty where none was asked for and none is there."""
    place = folder or DEFAULT
    library, tests, facts = place / "libattn_ops.so", place / "device_tests", place / FACTS
    if not library.exists() or not facts.exists():
        return f"{place} holds no libattn_ops.so with its {FACTS}" if folder else ""
    built = json.loads(facts.read_text())
    if built["digest"] != digest():
        return f"{place} was built from other sources (commit {built['commit']})"
    if capability and not serves(built["architectures"], capability):
        return f"{place} has kernels for {built['architectures']}, this GPU is sm_{capability}"
    if tests.exists():
        tests.chmod(0o755)  # may be lost on the way
    return Prebuilt(library, tests if tests.exists() else None, built["architectures"])


def describe(folder: Path, architectures: str) -> None:
    facts = {"digest": digest(), "commit": commit(), "architectures": architectures}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
