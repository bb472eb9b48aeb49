"""Print the directory of googletest's sources, getting them first if need be. The C++ tests build gtest from
source, because a sanitizer build wants gtest built the same way.

Tried in order: what is already there; apt-get install (as root); apt-get download, unpacked here without
root; the release on GitHub.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

DEPS = Path(__file__).resolve().parent.parent / "build" / "deps"
SYSTEM = Path("/usr/src/googletest")
RELEASE = "https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz"
RELEASE_SHA256 = "8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7"


def is_source(directory: Path) -> bool:
    return (directory / "googletest" / "src" / "gtest-all.cc").exists()


def run(*command: str, cwd: Path | None = None) -> bool:
    print("+", *command, file=sys.stderr)
    return subprocess.run(command, cwd=cwd, stdout=sys.stderr, stdin=subprocess.DEVNULL).returncode == 0


def from_apt() -> Path | None:
    """As root: install the package that carries the sources."""
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return None
    install = ("apt-get", "install", "-y", "--no-install-recommends", "googletest")
    if run(*install) or (run("apt-get", "update") and run(*install)):
        return SYSTEM
    return None


def from_apt_download() -> Path | None:
    """Without root: fetch the same package and unpack it."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        if not run("apt-get", "download", "googletest", cwd=Path(scratch)):
            return None
        for package in Path(scratch).glob("googletest_*.deb"):
            if run("dpkg-deb", "-x", str(package), str(DEPS / "debian")):
                return DEPS / "debian" / "usr" / "src" / "googletest"
    return None


def from_github() -> Path | None:
    try:
        with urllib.request.urlopen(RELEASE, timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        print(f"{RELEASE}: {error}", file=sys.stderr)
        return None
    if hashlib.sha256(data).hexdigest() != RELEASE_SHA256:
        print(f"{RELEASE}: unexpected content", file=sys.stderr)
        return None
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(DEPS, filter="data")
    return DEPS / "googletest-1.14.0"


def find() -> Path | None:
    present = [SYSTEM, DEPS / "debian" / "usr" / "src" / "googletest", DEPS / "googletest-1.14.0"]
    for directory in present:
        if is_source(directory):
            return directory
    DEPS.mkdir(parents=True, exist_ok=True)
    for get in (from_apt, from_apt_download, from_github):
        directory = get()
        if directory is not None and is_source(directory):
            return directory
    return None


if __name__ == "__main__":
    found = find()
    if found is None:
        sys.exit(
            "googletest not found: install it (Debian: apt-get install googletest) or pass "
            "-DATTN_GTEST_SOURCE=<its sources>"
        )
    print(found)
