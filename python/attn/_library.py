"""Loads libattn_ops.so, after which every op is under `torch.ops.attn`.

The library is bound to no Python and no torch version (libtorch stable ABI, torch >= 2.10). Loading it starts
nothing: no CUDA context, no threads.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

MINIMUM_TORCH = (2, 10)
LIBRARY = Path(__file__).with_name("libattn_ops.so")


def load() -> None:
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version and tuple(map(int, version.groups())) < MINIMUM_TORCH:
        raise ImportError(
            f"attn needs torch >= {'.'.join(map(str, MINIMUM_TORCH))}, found {torch.__version__}"
        )
    if not LIBRARY.exists():
        raise ImportError(
            f"{LIBRARY} is missing: the C++ part of attn is not built. Install the package with "
            "'pip install .'; for development see CONTRIBUTING.md"
        )
    torch.ops.load_library(str(LIBRARY))


load()
