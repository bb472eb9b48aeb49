"""What the benchmarks of the scan family share."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable

import torch
from common import Bench
from torch import Tensor

# The released forms are the tests' yardstick too.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "python"))
import eager_scan

__all__ = ["eager_scan", "linear_in_length", "memory", "qkv", "training"]


def qkv(length: int, dtype: torch.dtype, heads: int = 8, dim: int = 64) -> list[Tensor]:
    return [torch.randn(1, heads, length, dim, dtype=dtype) for _ in range(3)]


def training(function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Forward and backward, gradients of every input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    dout = torch.randn_like(function(*leaves))

    def step() -> object:
        return torch.autograd.grad(function(*leaves), leaves, dout)

    return step


def linear_in_length(
    bench: Bench, name: str, function: Callable[..., Tensor], draw: Callable[[int], list[Tensor]]
) -> None:
    """Time of 128k tokens over that of 16k, taken in turn."""
    short, long = (2048, 16384) if bench.args.quick else (16384, 131072)
    a, b = draw(short), draw(long)
    row = bench.run(
        f"{name} T={long} and T={short}", {"attn": lambda: function(*b), "short": lambda: function(*a)}
    )
    if row:
        print(f"    T={long} takes {1 / row['ratio']['short']:.2f} times T={short} (bar 8.5)")


CHILD = """
import resource, sys, torch, attn
length, threads = int(sys.argv[1]), int(sys.argv[2])
dtype = getattr(torch, sys.argv[3])
torch.set_num_threads(threads)
def call(x):
    {call}
call([torch.randn(1, 8, 300, 64, dtype=dtype) for _ in range(3)])
inputs = [torch.randn(1, 8, length, 64, dtype=dtype) for _ in range(3)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = call(inputs)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = out.numel() * out.element_size()
print((after - before) * 1024 - result, sum(x.numel() * x.element_size() for x in inputs))
"""


def memory(name: str, call: str, threads: int, length: int = 65536) -> None:
    """Peak memory of a call beyond inputs and result, over the size of the inputs (q, k and v)."""
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, "-c", CHILD.replace("{call}", call), str(length), str(threads), dtype]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        extra, inputs = map(int, run.stdout.split())
        print(
            f"{name} {dtype} T={length}: peak extra memory {extra / 1e6:.1f} MB, "
            f"{extra / inputs:.2f}x of the inputs"
        )
