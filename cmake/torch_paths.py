"""Print 'directory;version' of the torch to build against, without importing it.

Only headers and the names of two libraries are taken from it. Under build isolation torch is usually not
importable although the environment that is being installed into has one; `sysconfig` still knows that
environment's directories.
"""

import importlib.util
import re
import sys
import sysconfig
from pathlib import Path


def find_torch() -> tuple[Path, str] | None:
    places: list[Path] = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent)
    places += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    for place in places:
        version_file = place / "version.py"
        if (place / "include" / "torch" / "csrc" / "stable" / "library.h").exists() and version_file.exists():
            match = re.search(r"__version__ = ['\"]([^'\"]+)", version_file.read_text())
            if match:
                return place, match.group(1)
    return None


if __name__ == "__main__":
    found = find_torch()
    if found is None:
        sys.exit(
            "no torch with stable ABI headers found for " + sys.executable + ": pip install 'torch>=2.10'"
        )
    print(f"{found[0].as_posix()};{found[1]}", end="")
