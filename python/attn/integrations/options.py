"""Options of the sparse attention implementations that transformers models can be given."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class _Options:
    #: layers (``module.layer_idx``) that keep exact dense attention
    dense_layers: tuple[int, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """What the attention function is called with."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dense_layers"}


@dataclass(frozen=True)
class HipOptions(_Options):
    """Options of ``attn_hip``, with the meanings and defaults of :func:`attn.hip_attention`."""

    mask_k: int = 512
    block_size_q: int = 64
    block_size_k: int = 2
    block_stride_q: int = 2
    sliding_window: int = 256
    sink_tokens: int = 16
    representative: str = "center"
    reduce_heads: str = "none"


@dataclass(frozen=True)
class S2Options(_Options):
    """Options of ``attn_s2``, with the meanings and defaults of :func:`attn.s2_attention`."""

    block_size: int = 64
    local_blocks: int = 8
    vert_stride: int = 8
    head_offset: int = 0
    head_step: int | None = None
    dense_heads: int = 0
    homogeneous: bool = False


@dataclass(frozen=True)
class WindowOptions(_Options):
    """Options of ``attn_window``: every token sees ``window`` keys, itself among them (bidirectional models:
    ``window - 1`` to each side), and the first ``sink_tokens`` keys of its sequence (Xiao et al. 2023,
    arXiv 2309.17453).
    """

    window: int = 1024
    sink_tokens: int = 4

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, the token itself, got {self.window}")
