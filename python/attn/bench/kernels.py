"""Who takes part in a case: attn's own kernels and the peers, each with the reason where it can't."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .. import reference
from ..mechanisms.attention import attention
from ..mechanisms.decode import decode_attention
from ..mechanisms.hip import hip_attention
from ..mechanisms.s2 import s2_attention
from .masks import Mask

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
Oracle = Callable[[Tensor, Tensor], Tensor]
BASELINE = "SDPA flash"
MOST_BYTES = 4e9  # a kernel that writes T x T matrices larger than this is left out


@dataclass(frozen=True)
class Kernel:
    """One way to compute a case.

    Attributes:
        make: for a mask, the function of (q, k, v).
        cannot: for (mask, stage, heads), why it takes no part, or None.
        oracle: for an approximation, its own visible keys ``[1, H, T, T]`` from (q, k); None: the mask.
        ours: an attn kernel.
        compiles: the first call compiles, and needs its own warm-up before memory is measured.
    """

    name: str
    make: Callable[[Mask], Call]
    cannot: Callable[[Mask, str, int], str | None]
    oracle: Oracle | None = None
    ours: bool = False
    compiles: bool = False

    @property
    def exact(self) -> bool:
        return self.oracle is None


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


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(mask: Mask) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask

    rule = mask.rule
    block_mask = create_block_mask(
        lambda b, h, i, j: rule(i, j), None, None, mask.length, mask.length, device="cpu"
    )
    run = _compiled_flex()
    return lambda q, k, v: _first(run(q, k, v, block_mask=block_mask, enable_gqa=True))


def _only_attention(stage: str) -> str | None:
    return "not a decode kernel" if stage == "decode" else None


def _large(mask: Mask, stage: str, heads: int) -> str | None:
    size = heads * mask.length**2 * 4 * (4 if stage == "backward" else 2)
    if size > MOST_BYTES:
        return f"would write about {size / 1e9:.0f} GB of T x T matrices"
    return _only_attention(stage)


def _flex_cannot(mask: Mask, stage: str, heads: int) -> str | None:
    if stage == "backward":
        return "FlexAttention has no backward on the CPU"
    if not (shutil.which("g++") or shutil.which("clang++")):
        return "FlexAttention on the CPU needs a C++ compiler"
    if importlib.util.find_spec("torch._inductor") is None:
        return "this torch has no compiler"
    return _only_attention(stage)


def _causal_only(mask: Mask, stage: str, heads: int) -> str | None:
    return _only_attention(stage) or (
        None if mask.plain == "causal" else "approximates causal attention only"
    )


def _hip(mask_k: int) -> Kernel:
    window, sink = 128, 16

    def oracle(q: Tensor, k: Tensor) -> Tensor:
        chosen = reference.hip_select(q, k, mask_k=mask_k, sliding_window=window, sink_tokens=sink)
        sizes = {"block_size_q": 64, "block_size_k": 2, "sliding_window": window, "sink_tokens": sink}
        length, heads = q.shape[2], q.shape[1]
        return reference.hip_token_mask(
            chosen.index, chosen.count, length, length, num_heads=heads, causal=True, **sizes
        )

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _first(hip_attention(q, k, v, mask_k=mask_k, sliding_window=window, sink_tokens=sink))

    return Kernel(f"attn HiP mask_k={mask_k}", lambda mask: call, _causal_only, oracle, ours=True)


def _s2(stride: int) -> Kernel:
    options: dict[str, Any] = {"block_size": 64, "local_blocks": 2, "vert_stride": stride}

    def oracle(q: Tensor, k: Tensor) -> Tensor:
        n = q.shape[2]
        return reference.s2_token_mask(n, n, num_heads=q.shape[1], num_kv_heads=k.shape[1], **options)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _first(s2_attention(q, k, v, **options))

    return Kernel(f"attn S2 stride={stride}", lambda mask: call, _causal_only, oracle, ours=True)


def _sink_window(window: int) -> Kernel:
    def oracle(q: Tensor, k: Tensor) -> Tensor:
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        return ((j <= i) & ((j < 16) | (i - j <= window))).expand(1, q.shape[1], -1, -1)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _first(attention(q, k, v, causal=True, window=(window, 0), sink_tokens=16))

    return Kernel(f"attn window={window}+16", lambda mask: call, _causal_only, oracle, ours=True)


def _flags_cannot(mask: Mask, stage: str, heads: int) -> str | None:
    reason = "no flag describes this mask; see attn layout" if mask.flags is None else None
    return _only_attention(stage) or reason


KERNELS: tuple[Kernel, ...] = (
    Kernel("attn", _flags, _flags_cannot, ours=True),
    Kernel("attn layout", _layout, lambda mask, stage, heads: _only_attention(stage), ours=True),
    Kernel(
        BASELINE,
        _sdpa(SDPBackend.FLASH_ATTENTION),
        lambda mask, stage, heads: _only_attention(stage),
    ),
    Kernel("SDPA math", _sdpa(SDPBackend.MATH), _large),
    Kernel("naive", _naive, _large),
    Kernel("FlexAttention", _flex, _flex_cannot, compiles=True),
    _hip(64),
    _hip(256),
    _s2(4),
    _s2(16),
    _sink_window(128),
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
