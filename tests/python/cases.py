"""The case table: one row per way of calling softmax attention, from which every backend is tested.

A row says shapes and flags; :meth:`Case.inputs` makes the tensors, the same values in every dtype. Add a row
here when a kernel learns something, and every backend, dtype and gradient is tested with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from attn import patterns
from attn.layout import BlockLayout

HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
ALL = (*HALF_AND_SINGLE, torch.float64)


@dataclass(frozen=True)
class Inputs:
    """What a case calls attention with."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, Any]

    def differentiable(self) -> dict[str, Tensor]:
        """The inputs that have gradients, by name."""
        modifiers = ("key_log_weight", "sink_logits", "head_gate")
        found = {name: self.options[name] for name in modifiers if name in self.options}
        return {"q": self.q, "k": self.k, "v": self.v, **found}

    def double(self) -> Inputs:
        """The same values in float64."""
        return self.replace({name: x.double() for name, x in self.differentiable().items()})

    def replace(self, tensors: dict[str, Tensor]) -> Inputs:
        """The same call with some of its differentiable inputs exchanged."""
        options = {name: tensors.get(name, value) for name, value in self.options.items()}
        return Inputs(tensors["q"], tensors["k"], tensors["v"], options)


@dataclass(frozen=True)
class Case:
    """One row. Sizes left None follow the field they pair with."""

    id: str
    B: int = 1
    H: int = 2
    Hkv: int | None = None
    Tq: int = 100
    Tk: int | None = None
    D: int = 32
    Dv: int | None = None
    dtypes: tuple[torch.dtype, ...] = HALF_AND_SINGLE
    flags: dict[str, Any] = field(default_factory=dict)  # passed as they are
    modifiers: tuple[str, ...] = ()  # tensors made by `inputs`: see there
    lengths_q: tuple[int, ...] | None = None  # packed sequences (B = 1); Tq and Tk follow
    lengths_k: tuple[int, ...] | None = None
    layout: Callable[[Case], BlockLayout] | None = None
    magnitude: float = 1.0  # of q: large values make large logits
    memory: str = "contiguous"  # or "BTHD", "padded": see `_arranged`

    @property
    def kv_heads(self) -> int:
        return self.H if self.Hkv is None else self.Hkv

    @property
    def q_len(self) -> int:
        return self.Tq if self.lengths_q is None else sum(self.lengths_q)

    @property
    def kv_len(self) -> int:
        if self.lengths_k is not None:
            return sum(self.lengths_k)
        return self.Tk if self.Tk is not None else self.q_len

    def inputs(self, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> Inputs:
        """Tensors of this case. Values are drawn in float64 on the CPU: all dtypes and devices see the same.

        Modifiers are float32, or float64 where q is.
        """
        g = torch.Generator().manual_seed(seed)
        statistics = torch.float64 if dtype == torch.float64 else torch.float32

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        def placed(values: Tensor) -> Tensor:
            return _arranged(values.to(dtype), self.memory).to(device)

        q = placed(self.magnitude * normal(self.B, self.H, self.q_len, self.D))
        k = placed(normal(self.B, self.kv_heads, self.kv_len, self.D))
        v = placed(normal(self.B, self.kv_heads, self.kv_len, self.D if self.Dv is None else self.Dv))
        options = dict(self.flags)
        for name in self.modifiers:
            if name == "key_log_weight":
                value = normal(self.B, self.kv_heads, self.kv_len).to(statistics)
            elif name == "key_log_weight_shared":  # broadcast over batch and heads
                name, value = "key_log_weight", normal(self.kv_len).to(statistics)
            elif name == "key_log_weight_removing":  # weight zero takes keys away, row 0 of batch 0 wholly
                value = normal(self.B, self.kv_heads, self.kv_len).to(statistics)
                value[torch.rand(value.shape, generator=g) < 0.3] = -torch.inf
                value[:1, :1] = -torch.inf
                name = "key_log_weight"
            elif name == "segment_ids":
                value = (
                    torch.randint(0, 3, (self.B, self.q_len), generator=g, dtype=torch.int32).sort().values
                )
            elif name == "segment_ids_pair":  # ids in any order, some of them only on one side
                name = "segment_ids"
                value = tuple(
                    torch.randint(low, low + 4, (self.B, n), generator=g, dtype=torch.int32)
                    for low, n in ((0, self.q_len), (1, self.kv_len))
                )
            elif name == "sink_logits":
                value = normal(self.H).to(statistics)
            elif name == "head_gate":
                value = normal(self.B, self.H, self.q_len).to(statistics)
            elif name == "head_gate_sparse":  # most of it zero, whole tiles too
                name, value = "head_gate", normal(self.B, self.H, self.q_len).to(statistics)
                value[..., : self.q_len // 2 // 64 * 64] = 0
                value[torch.rand(value.shape, generator=g) < 0.5] = 0
            else:
                raise ValueError(f"unknown modifier {name!r}")
            options[name] = (
                tuple(x.to(device) for x in value) if isinstance(value, tuple) else value.to(device)
            )
        for side, lengths in (("q", self.lengths_q), ("k", self.lengths_k)):
            if lengths is not None:
                cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
                options[f"cu_seqlens_{side}"] = cu_seqlens.to(device)
                options[f"max_seqlen_{side}"] = max(lengths)
        if self.layout is not None:
            options["layout"] = self.layout(self).to(device)
        return Inputs(q, k, v, options)

    def __str__(self) -> str:
        return self.id


def _arranged(x: Tensor, memory: str) -> Tensor:
    """The same values laid out in memory as models do."""
    if memory == "contiguous":
        return x.contiguous()
    if memory == "BTHD":  # a transposed view of [B, T, H, D]
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if (
        memory == "padded"
    ):  # a slice of a larger buffer: no stride is a product of sizes, and what lies around is NaN
        b, h, t, d = x.shape
        buffer = x.new_full((b, h + 1, t + 3, d + 5), torch.nan)
        buffer[:, :h, 2 : t + 2, :d] = x
        return buffer[:, :h, 2 : t + 2, :d]
    raise ValueError(f"unknown memory {memory!r}")


def random_blocks(
    block_q: int, block_k: int, *, heads: bool = False, batch: bool = False, density: float = 0.5
) -> Callable[[Case], BlockLayout]:
    """Wholly kept random blocks; some rows of blocks stay empty."""

    def make(case: Case) -> BlockLayout:
        g = torch.Generator().manual_seed(1)
        shape = (
            case.B if batch else 1,
            case.H if heads else 1,
            -(-case.q_len // block_q),
            -(-case.kv_len // block_k),
        )
        mask = torch.rand(shape, generator=g) < density
        mask[:, -1:, -1] = False
        return BlockLayout.from_mask(
            mask, block_q=block_q, block_k=block_k, q_len=case.q_len, kv_len=case.kv_len
        )

    return make


def random_tokens(
    block_q: int, block_k: int, *, heads: bool = False, batch: bool = False
) -> Callable[[Case], BlockLayout]:
    """Empty, whole and cut blocks in one layout, whatever the block size (up to 64 or so)."""

    def make(case: Case) -> BlockLayout:
        g = torch.Generator().manual_seed(2)
        lead = (case.B if batch else 1, case.H if heads else 1)
        kind = torch.randint(0, 3, (*lead, -(-case.q_len // 64), -(-case.kv_len // 64)), generator=g)
        kind = kind.repeat_interleave(64, 2).repeat_interleave(64, 3)[:, :, : case.q_len, : case.kv_len]
        mask = (kind == 1) | ((kind == 2) & (torch.rand(kind.shape, generator=g) < 0.5))
        return BlockLayout.from_token_mask(mask, block_q, block_k)

    return make


def strided(**options: Any) -> Callable[[Case], BlockLayout]:
    def make(case: Case) -> BlockLayout:
        return patterns.strided(
            case.q_len, case.kv_len, num_heads=case.H, num_kv_heads=case.kv_heads, **options
        )

    return make


CAUSAL = {"causal": True}

CASES = [
    # Shapes.
    Case("dense", dtypes=ALL),
    Case("one_token", Tq=1),
    Case("one_row_many_keys", Tq=1, Tk=300),
    Case("one_key", Tq=70, Tk=1, flags=CAUSAL),
    Case("many_tiles", Tq=300, Tk=420),
    *(Case(f"length_{n}", Tq=n, flags=CAUSAL) for n in (15, 16, 17, 63, 64, 65, 127, 128, 129)),
    Case("no_keys", Tk=0, dtypes=ALL),
    Case("no_rows", Tq=0, Tk=50),
    Case("no_batch", B=0),
    *(
        Case(f"head_dim_{d}", D=d, Tq=70, Tk=90, dtypes=ALL if d == 6 else HALF_AND_SINGLE)
        for d in (1, 6, 31, 40, 64, 80, 96, 128, 160, 192, 256)
    ),
    Case("value_dim_larger", D=40, Dv=72),
    Case("value_dim_smaller", D=64, Dv=24),
    Case("value_dim_odd", D=64, Dv=13, flags=CAUSAL),
    Case("value_dim_one", D=16, Dv=1),
    Case("batch", B=3, H=3, flags=CAUSAL),
    # Grouped heads.
    Case("gqa", H=6, Hkv=2, dtypes=ALL),
    Case("gqa_causal", B=2, H=8, Hkv=2, Tq=150, flags=CAUSAL),
    Case("mqa", H=5, Hkv=1, flags=CAUSAL),
    Case("gqa_one_row", H=8, Hkv=2, Tq=1, Tk=500, flags=CAUSAL),
    # Causal alignment.
    Case("causal", Tq=200, flags=CAUSAL, dtypes=ALL),
    Case("causal_more_keys", Tq=50, Tk=170, flags=CAUSAL, dtypes=ALL),
    Case("causal_more_rows", Tq=170, Tk=50, flags=CAUSAL, dtypes=ALL),  # the first rows see nothing
    Case("causal_many_empty_rows", Tq=300, Tk=20, flags=CAUSAL),
    # Windows and sinks.
    Case("window", Tq=200, flags={"window": (30, 20)}),
    Case("window_causal", Tq=300, flags={"window": (70, 0), **CAUSAL}, dtypes=ALL),
    Case("window_causal_right_ignored", flags={"window": (20, 50), **CAUSAL}),
    Case("window_left_only", Tq=150, flags={"window": (17, -1)}),
    Case("window_right_only", Tq=150, flags={"window": (-1, 17)}),
    Case("window_diagonal", flags={"window": (0, 0)}),
    Case("window_more_keys", Tq=40, Tk=300, flags={"window": (64, 0), **CAUSAL}),
    Case("window_more_rows", Tq=300, Tk=40, flags={"window": (5, 5)}),  # rows past the keys see nothing
    Case("sinks", Tq=300, flags={"window": (40, 0), "sink_tokens": 9, **CAUSAL}, dtypes=ALL),
    Case("sinks_not_causal", Tq=200, flags={"window": (10, 10), "sink_tokens": 70}),
    Case("sinks_cover_all", flags={"window": (3, 0), "sink_tokens": 1000, **CAUSAL}),
    Case("sinks_more_rows", Tq=150, Tk=60, flags={"window": (8, 0), "sink_tokens": 4, **CAUSAL}),
    # Logits.
    Case("scale", flags={"scale": 0.3}),
    Case("scale_negative", flags={"scale": -0.2, **CAUSAL}),
    Case("scale_zero", flags={"scale": 0.0}),
    Case("softcap", flags={"softcap": 1.5}, dtypes=ALL, magnitude=4.0),
    Case("softcap_causal", flags={"softcap": 30.0, **CAUSAL}, magnitude=8.0),
    Case("large_logits", Tq=150, magnitude=60.0, flags=CAUSAL),
    Case("equal_logits", magnitude=0.0, flags=CAUSAL),
    # Modifiers.
    Case("key_log_weight", B=2, modifiers=("key_log_weight",), dtypes=ALL),
    Case("key_log_weight_gqa", H=4, Hkv=2, Tq=150, modifiers=("key_log_weight",), flags=CAUSAL),
    Case("key_log_weight_shared", B=2, modifiers=("key_log_weight_shared",)),
    Case("key_log_weight_removing", B=2, modifiers=("key_log_weight_removing",), dtypes=ALL),
    Case("segments", B=2, Tq=200, modifiers=("segment_ids",), flags=CAUSAL, dtypes=ALL),
    Case("segments_pair", B=2, Tq=90, Tk=130, modifiers=("segment_ids_pair",)),
    Case("sink_logits", modifiers=("sink_logits",), dtypes=ALL),
    Case("sink_logits_empty_rows", Tq=120, Tk=60, modifiers=("sink_logits",), flags=CAUSAL),
    Case("head_gate", B=2, modifiers=("head_gate",), flags=CAUSAL, dtypes=ALL),
    Case("head_gate_sparse", Tq=300, modifiers=("head_gate_sparse",)),
    Case(
        "everything",
        B=2,
        H=4,
        Hkv=2,
        Tq=150,
        Tk=220,
        D=40,
        Dv=24,
        flags={"window": (60, 0), "sink_tokens": 5, "softcap": 3.0, "scale": 0.4, **CAUSAL},
        modifiers=("key_log_weight", "segment_ids_pair", "sink_logits", "head_gate"),
        dtypes=ALL,
    ),
    # Packed sequences.
    Case("packed", lengths_q=(40, 0, 100, 1), dtypes=ALL),
    Case("packed_causal", H=4, Hkv=2, lengths_q=(70, 64, 0, 33), flags=CAUSAL, dtypes=ALL),
    Case("packed_unequal", lengths_q=(40, 0, 30, 20), lengths_k=(80, 10, 0, 15), flags=CAUSAL, dtypes=ALL),
    Case("packed_unequal_not_causal", lengths_q=(40, 0, 30), lengths_k=(15, 10, 100)),
    Case(
        "packed_window_sinks",
        lengths_q=(150, 20, 90),
        flags={"window": (16, 0), "sink_tokens": 3, **CAUSAL},
    ),
    Case("packed_all_empty", lengths_q=(0, 0)),
    Case(
        "packed_modifiers",
        H=4,
        Hkv=2,
        lengths_q=(50, 80),
        flags={"softcap": 2.0, **CAUSAL},
        modifiers=("key_log_weight", "sink_logits", "head_gate"),
    ),
    # Layouts.
    *(
        Case(
            f"blocks_{b}",
            Tq=300,
            Tk=260,
            layout=random_blocks(b, b),
            dtypes=ALL if b == 64 else HALF_AND_SINGLE,
        )
        for b in (16, 32, 64, 128)
    ),
    Case("blocks_wide", Tq=200, Tk=300, layout=random_blocks(16, 128)),
    Case("blocks_tall", Tq=300, Tk=200, layout=random_blocks(128, 16)),
    Case("blocks_odd_sizes", Tq=200, Tk=200, layout=random_blocks(48, 80)),
    Case("blocks_causal", Tq=300, layout=random_blocks(64, 32), flags=CAUSAL, dtypes=ALL),
    Case("blocks_per_head", B=2, H=3, Tq=200, layout=random_blocks(64, 64, heads=True)),
    Case("blocks_per_batch", B=3, H=2, Tq=200, layout=random_blocks(64, 64, batch=True)),
    Case(
        "blocks_per_head_gqa", B=2, H=4, Hkv=2, Tq=200, layout=random_blocks(32, 64, heads=True, batch=True)
    ),
    Case("blocks_none", Tq=150, layout=random_blocks(64, 64, density=0.0)),
    Case("blocks_all", Tq=150, layout=random_blocks(64, 64, density=1.1), flags=CAUSAL),
    Case("tiles", Tq=200, Tk=180, layout=random_tokens(64, 64), dtypes=ALL),
    Case("tiles_odd_sizes", Tq=200, Tk=180, layout=random_tokens(48, 80)),
    Case("tiles_small", Tq=100, Tk=90, layout=random_tokens(16, 16)),
    Case("tiles_unequal", Tq=200, Tk=300, layout=random_tokens(32, 128)),
    Case("tiles_per_head", B=2, H=4, Hkv=2, Tq=150, layout=random_tokens(64, 32, heads=True, batch=True)),
    Case("tiles_causal_window", Tq=200, layout=random_tokens(64, 64), flags={"window": (50, 0), **CAUSAL}),
    Case("strided_layout", H=4, Hkv=2, Tq=300, layout=strided(block_size=32, local_blocks=2, vert_stride=3)),
    Case(
        "strided_layout_more_keys",
        H=4,
        Tq=100,
        Tk=330,
        layout=strided(block_size=16, local_blocks=3, vert_stride=4, block_q=32, block_k=48),
    ),
    Case(
        "document_layout",
        Tq=200,
        layout=lambda case: patterns.document([0, 50, 50, 130, 200], block_q=32, block_k=64),
    ),
    Case(
        "halo_layout",
        Tq=12 * 16,
        layout=lambda case: patterns.halo_2d(12, 16, block=4, halo=2, block_q=32, block_k=16),
    ),
    Case(
        "layout_everything",
        B=2,
        H=4,
        Hkv=2,
        Tq=150,
        Tk=220,
        D=24,
        layout=random_tokens(32, 64, heads=True),
        flags={"window": (100, 0), "sink_tokens": 5, "softcap": 3.0, **CAUSAL},
        modifiers=("key_log_weight", "segment_ids_pair", "sink_logits", "head_gate"),
        dtypes=ALL,
    ),
    # Memory.
    Case("bthd", B=2, H=3, memory="BTHD", flags=CAUSAL),
    Case("bthd_gqa", B=2, H=4, Hkv=2, D=40, memory="BTHD"),
    Case("padded", B=2, D=40, memory="padded", flags=CAUSAL, dtypes=ALL),
    Case("padded_layout", B=2, D=20, memory="padded", layout=random_tokens(32, 32)),
]

assert len({case.id for case in CASES}) == len(CASES), "ids must be unique"


def with_dtypes(cases: list[Case] = CASES) -> list[Any]:
    """pytest parameters (case, dtype) for every dtype of every case."""
    import pytest

    return [
        pytest.param(case, dtype, id=f"{case.id}-{str(dtype).removeprefix('torch.')}")
        for case in cases
        for dtype in case.dtypes
    ]
