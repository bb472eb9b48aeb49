"""Before a kernel is timed: does it compute the mask of the case, pair by pair?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import masked_attention
from .kernel import Call, Kernel
from .masks import build

LENGTH = 320  # no multiple of 128
DIM = 64
MOST_ERROR = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}  # by norm; what is wrong is far above


def read_mask(call: Call, q: Tensor, k: Tensor) -> Tensor:
    """bool ``[1, H, Tq, Tk]``: which keys have a weight, whatever computes them.

    With v a part of the identity matrix the result is a part of the weight matrix itself.
    """
    eye = torch.eye(k.shape[2], dtype=k.dtype)
    parts = []
    for columns in eye.split(q.shape[-1], dim=1):
        v = torch.nn.functional.pad(columns, (0, q.shape[-1] - columns.shape[1]))
        v = v.expand(k.shape[0], k.shape[1], *v.shape).contiguous()
        parts.append(call(q, k, v)[..., : columns.shape[1]] != 0)
    return torch.cat(parts, -1)


def disagreement(kernel: Kernel, mask_name: str, dtype: str, stage: str) -> str | None:
    """None if the kernel's mask is the oracle's on 320 tokens (and, for the backward pass, its gradients are
    those of float64; for a mechanism with a reference, its result too), else what differs."""
    mask = build(mask_name, LENGTH)
    generator = torch.Generator().manual_seed(LENGTH)
    q_len = 1 if stage == "decode" else LENGTH
    # Small logits: no weight underflows to zero.
    q, k, v = (
        torch.randn(1, heads, n, DIM, generator=generator).to(getattr(torch, dtype))
        for heads, n in ((2, q_len), (1, LENGTH), (1, LENGTH))
    )
    call = kernel.make(mask)
    wanted = mask.rows(torch.arange(q_len)) if kernel.oracle is None else kernel.oracle(q, k)
    found = read_mask(call, q, k)
    wanted = wanted.expand(found.shape)
    wrong = int((found != wanted).sum())
    if wrong:
        extra, missing = int((found & ~wanted).sum()), int((wanted & ~found).sum())
        return f"mask differs at {wrong} of {found.numel()} pairs ({extra} too many, {missing} missing)"
    if kernel.reference is None:
        exact: Call = lambda q, k, v: masked_attention(q, k, v, wanted)[0]  # noqa: E731
    else:
        exact = kernel.reference(mask)
        error = _off(call(q, k, v), exact(q.double(), k.double(), v.double()))
        if not error <= MOST_ERROR[dtype]:
            return f"the result is off by {error:.1e}"
    if stage != "backward":
        return None
    dout = torch.randn(q.shape, generator=generator).to(q.dtype)
    mine = torch.autograd.grad(call(*(inputs := _leaves(q, k, v))), inputs, dout)
    q, k, v = _leaves(q.double(), k.double(), v.double())
    right = torch.autograd.grad(exact(q, k, v), (q, k, v), dout.double())
    for name, a, b in zip("qkv", mine, right, strict=True):
        error = _off(a, b)
        if not error <= MOST_ERROR[dtype]:
            return f"gradient of {name} is off by {error:.1e}"
    return None


def _off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _leaves(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    return q, k, v
