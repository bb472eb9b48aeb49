"""Who takes part in a case: attn's own kernels and the peers, each with the reason where it can't."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..mechanisms.attention import attention
from ..mechanisms.decode import decode_attention
from .kernel import Call, Kernel, only_attention
from .masks import Mask
from .mechanisms import MECHANISMS

BASELINE = "SDPA flash"
MOST_BYTES = 4e9  # a kernel that writes T x T matrices larger than this is left out


def _first(result: Any) -> Tensor:
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out


def _flags(mask: Mask) -> Call:
    flags = mask.flags or {}
    return lambda q, k, v: _first(attention(q, k, v, **flags))


def _layout(mask: Mask) -> Call:
    layout = mask.layout()
    return lambda q, k, v: _first(attention(q, k, v, layout=layout))


def _sdpa(backend: SDPBackend) -> Callable[[Mask], Call]:
    def make(mask: Mask) -> Call:
        options: dict[str, Any] = {"is_causal": mask.plain == "causal"}
        if mask.plain is None:
            options["attn_mask"] = mask.table()

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)

        return call

    return make


def _naive(mask: Mask) -> Call:
    hidden = None if mask.plain == "full" else ~mask.table()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        return scores.softmax(-1) @ v

    return call


def _flex(mask: Mask) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # After eight masks and lengths the compiler would give up, and run it uncompiled with all its weights.
    torch.compiler.reset()
    rule = mask.rule
    block_mask = create_block_mask(
        lambda b, h, i, j: rule(i, j), None, None, mask.length, mask.length, device="cpu"
    )
    run: Any = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: _first(run(q, k, v, block_mask=block_mask, enable_gqa=True))


def _large(mask: Mask, stage: str, heads: int) -> str | None:
    size = heads * mask.length**2 * 4 * (4 if stage == "backward" else 2)
    if size > MOST_BYTES:
        return f"would write about {size / 1e9:.0f} GB of T x T matrices"
    return only_attention(stage)


def _flex_cannot(mask: Mask, stage: str, heads: int) -> str | None:
    if stage == "backward":
        return "FlexAttention has no backward on the CPU"
    if not (shutil.which("g++") or shutil.which("clang++")):
        return "FlexAttention on the CPU needs a C++ compiler"
    if importlib.util.find_spec("torch._inductor") is None:
        return "this torch has no compiler"
    return only_attention(stage)


def _flags_cannot(mask: Mask, stage: str, heads: int) -> str | None:
    reason = "no flag describes this mask; see attn layout" if mask.flags is None else None
    return only_attention(stage) or reason


KERNELS: tuple[Kernel, ...] = (
    Kernel("attn", _flags, _flags_cannot, ours=True),
    Kernel("attn layout", _layout, lambda mask, stage, heads: only_attention(stage), ours=True),
    Kernel(
        BASELINE,
        _sdpa(SDPBackend.FLASH_ATTENTION),
        lambda mask, stage, heads: only_attention(stage),
    ),
    Kernel("SDPA math", _sdpa(SDPBackend.MATH), _large),
    Kernel("naive", _naive, _large),
    Kernel("FlexAttention", _flex, _flex_cannot, compiles=True),
    *MECHANISMS,
)


def _decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seqlens = torch.full((q.shape[0],), k.shape[2], dtype=torch.int32)
    return _first(decode_attention(q, k, v, seqlens=seqlens))


def _folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The heads of a group as rows of one product: the plain PyTorch form that reads the cache once."""
    rows = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1]) * q.shape[-1] ** -0.5
    return ((rows @ k.transpose(-1, -2)).softmax(-1) @ v).reshape(*q.shape[:-1], v.shape[-1])


def _decoding(mask: Mask, stage: str, heads: int) -> str | None:
    return None if stage == "decode" else "a decode kernel"


DECODE: tuple[Kernel, ...] = (
    Kernel("attn", lambda mask: _decode, _decoding, ours=True),
    Kernel(BASELINE, _sdpa(SDPBackend.FLASH_ATTENTION), _decoding),
    Kernel("SDPA math", _sdpa(SDPBackend.MATH), _decoding),
    Kernel("heads folded", lambda mask: _folded, _decoding),
)
