"""What the machine is and what it can do."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .._C import cpu_isa
from .._version import __version__
from ..info import info


def facts(threads: int) -> dict[str, str | int]:
    return {
        "cpu": info().cpu["model"],
        "threads": threads,
        "isa": cpu_isa(),
        "attn": __version__,
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",  # not the kernel: results are published
    }


def peak_gflops(dtype: str, size: int = 1536, repeats: int = 2) -> float:
    """GFLOP/s of the fastest square matrix product that PyTorch has (its default one, and oneDNN's, which for
    float32 is faster on some CPUs): a measure for compute-bound kernels that needs no compiler.

    Measured again before every case; the largest counts, so that a busy moment doesn't set it. float16 has
    the peak of float32, in which CPUs without its arithmetic compute it.
    """
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size).to(kind) for _ in range(2))
    products: list[Callable[[], Tensor]] = [lambda: a @ b]
    if torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    best = 0.0
    for product in products:
        try:
            product()
        except (RuntimeError, AttributeError):  # a private op of PyTorch: other versions may lack it
            continue
        for _ in range(repeats):
            start = time.perf_counter()
            product()
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best * 1e-9
