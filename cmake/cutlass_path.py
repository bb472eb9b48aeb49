"""Print the directory with CUTLASS's headers: $CUTLASS_DIR, else that of an installed nvidia-cutlass.

Nothing is imported; `sysconfig` knows the environment's directories under build isolation, too
(torch_paths.py).
"""

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path


def find_cutlass() -> Path | None:
    given = os.environ.get("CUTLASS_DIR")
    if given:
        places = [Path(given) / "include", Path(given)]
    else:
        packages: list[Path] = []
        spec = importlib.util.find_spec("cutlass_library")
        if spec is not None and spec.origin is not None:
            packages.append(Path(spec.origin).parent)
        packages += [Path(sysconfig.get_path(name)) / "cutlass_library" for name in ("platlib", "purelib")]
        places = [package / "source" / "include" for package in packages]
    return next((p for p in places if (p / "cute" / "arch" / "mma_sm90_gmma.hpp").exists()), None)


if __name__ == "__main__":
    found = find_cutlass()
    if found is None:
        sys.exit(1)
    print(found.as_posix(), end="")
