"""Runs a pooling op, its plain form and its oracle on the same inputs and compares results and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tolerance import assert_as_exact_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAN = float("nan")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def results(
    function: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    options: dict[str, Any],
    precision: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The result and the gradient of every input, by name, for a fixed random gradient of the result (rounded
    to ``precision``, by default the dtype of the result).
    """
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    out = function(**leaves, **options)
    found = {"out": out.detach()}
    if out.requires_grad:
        dout = randn(*out.shape, seed=1).to(precision or out.dtype).to(out.dtype)
        gradients = torch.autograd.grad(out, list(leaves.values()), dout, allow_unused=True)
    else:
        gradients = (None,) * len(leaves)
    for (name, x), gradient in zip(leaves.items(), gradients, strict=True):
        found["d" + name] = torch.zeros_like(x) if gradient is None else gradient
    return found


def check_pool(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    options: dict[str, Any],
) -> None:
    """Assert the 2x rule for the result and all gradients (see tolerance.py)."""
    actual, low = results(ours, inputs, options), results(plain, inputs, options)
    doubles = {name: x.double() for name, x in inputs.items()}
    oracle = results(exact, doubles, options, actual["out"].dtype)
    for name, expected in oracle.items():
        assert_as_exact_as(actual[name], low[name], expected, name)


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that results and gradients agree bit for bit."""
    for name, x in expected.items():
        assert torch.equal(found[name], x), f"{name} differs"


def same_for_any_threads(run: Callable[[], dict[str, Tensor]]) -> None:
    """Assert that results don't depend on the number of threads, bit for bit."""
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(run())
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        check_equal(other, found[0])
