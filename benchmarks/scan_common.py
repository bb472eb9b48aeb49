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


def qkv(
    length: int, dtype: torch.dtype, heads: int = 8, dim: int = 64, *, heads_last: bool = False
) -> list[Tensor]:
    """[1, H, T, D]; ``heads_last``: views of [1, T, H, D], as models and the released modules pass them."""
    if heads_last:
        return [torch.randn(1, length, heads, dim, dtype=dtype).transpose(1, 2) for _ in range(3)]
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
        row["times_longer"] = 1 / row["ratio"]["short"]
        print(f"    T={long} takes {row['times_longer']:.2f} times T={short} (bar 8.5)")


CHILD = """
import sys, torch, attn
length, threads = int(sys.argv[1]), int(sys.argv[2])
dtype = getattr(torch, sys.argv[3])
torch.set_num_threads(threads)
def call(x):
    {call}
def peak():
    # Of this process alone: ru_maxrss starts with what the parent had when it was split off.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
call([torch.randn(1, 8, 300, 64, dtype=dtype) for _ in range(3)])
inputs = [torch.randn(1, 8, length, 64, dtype=dtype) for _ in range(3)]
before = peak()
out = call(inputs)
after = peak()
result = out.numel() * out.element_size()
print(after - before - result, sum(x.numel() * x.element_size() for x in inputs))
"""


def memory(bench: Bench, name: str, call: str, length: int = 65536) -> None:
    """Peak memory of a call beyond inputs and result, over the size of the inputs (q, k and v)."""
    threads = bench.args.threads
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, "-c", CHILD.replace("{call}", call), str(length), str(threads), dtype]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        extra, inputs = map(int, run.stdout.split())
        print(
            f"{name} {dtype} T={length}: peak extra memory {extra / 1e6:.1f} MB, "
            f"{extra / inputs:.2f}x of the inputs"
        )
        row = {"case": f"{name} {dtype} T={length} memory", "ms": {}, "ratio": {}, "bar": {}}
        bench.rows.append({**row, "extra_bytes": extra, "input_bytes": inputs})
