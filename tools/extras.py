"""extras.py <name...>: print the requirements of optional dependency groups of pyproject.toml, one a line
('build' = what building needs).

For installing them without the package itself: `pip install .[test]` would build it first.
"""

import sys
from pathlib import Path

import tomllib

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
groups = {
    "build": [*project["build-system"]["requires"], "cmake>=3.25", "ninja"],
    **project["project"]["optional-dependencies"],
}

for name in sys.argv[1:]:
    print("\n".join(groups[name]))
