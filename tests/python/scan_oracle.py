"""Runs a scan function, its plain PyTorch form and its float64 reference on the same input, and compares
results and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tolerance import assert_as_exact_as

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
Function = Callable[..., Tensor]


def draw(*shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normal numbers, the same values (rounded) in every dtype."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def results(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of the inputs, for a random gradient rounded to ``dtype``."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    (dout,) = draw(out.shape, seed=99, dtype=dtype)
    if not out.requires_grad:
        return [out, *(torch.zeros_like(x) for x in leaves)]
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out))]


def check(actual: Function, plain: Function, exact: Function, inputs: Sequence[Tensor], name: str) -> None:
    """Assert the 2x rule for the result and for every gradient. The exact form gets float64. Where the plain
    form overflows in its dtype, the yardstick is the same in float32, rounded at the end.
    """
    dtype = inputs[0].dtype
    found, yardstick = results(actual, inputs, dtype), results(plain, inputs, dtype)
    if not all(x.isfinite().all() for x in yardstick):
        yardstick = [x.to(dtype) for x in results(plain, [x.float() for x in inputs], dtype)]
    truth = results(exact, [x.double() for x in inputs], dtype)
    for i, (a, p, e) in enumerate(zip(found, yardstick, truth, strict=True)):
        assert_as_exact_as(a, p, e, f"{name}: {'gradient ' + str(i - 1) if i else 'out'}")


def by_sequence(function: Function, cu_seqlens: Tensor | None = None, mask: Tensor | None = None) -> Function:
    """``function(q, k, v)`` on the kept tokens of every sequence alone, rows of other tokens 0."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, tokens, _ = q.shape
        out = q.new_zeros(batch, heads, tokens, v.shape[3])
        bounds = [0, tokens] if cu_seqlens is None else cu_seqlens.tolist()
        for b in range(batch):
            for i, j in pairwise(bounds):
                rows = torch.arange(i, j)
                rows = rows if mask is None else rows[mask[b, i:j]]
                if rows.numel():
                    part = function(*(x[b : b + 1, :, rows] for x in (q, k, v)))
                    place = (torch.tensor(b), torch.arange(heads)[:, None], rows[None, :])
                    out = out.index_put(place, part[0])
        return out

    return run


def grouped(function: Function, group: int) -> Function:
    """``function`` with keys and values repeated for every query head."""
    return lambda q, k, v: function(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
