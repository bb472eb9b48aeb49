"""PEP 517 backend: scikit-build-core, plus torch as a build requirement where none is installed.

Only torch's headers are used, on its stable ABI, so any torch >= 2.10 will do to build and any to run. pip's
build isolation hides the torch that is already there, but not where it lies (cmake/torch_paths.py finds it);
asking for torch regardless would make pip download a second one, several gigabytes where the default wheel is
the CUDA one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from scikit_build_core.build import get_requires_for_build_editable as _editable_requires
from scikit_build_core.build import get_requires_for_build_wheel as _wheel_requires

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cmake"))

from torch_paths import find_torch

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# The release that the project is developed and tested with.
TORCH = "torch==2.13.0"


def _torch_requirement() -> list[str]:
    return [] if find_torch() is not None else [TORCH]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*_wheel_requires(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return [*_editable_requires(config_settings), *_torch_requirement()]
