"""attn on an NVIDIA GPU against the peers that are installed: PyTorch's SDPA (flash, cuDNN, efficient),
compiled FlexAttention with the same mask, flash_attn. bfloat16; CUDA events, caches flushed, medians;
candidates of a case take turns. A case is left out where its kernel is missing or the time is up, and the
table says so.

    python benchmarks/gpu.py [--json FILE] [--seconds 180] [--list] [CASE...]
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import attn

BF16 = torch.bfloat16
BLOCK = 128  # FlexAttention's own
Call = Callable[[], Any]


@dataclass
class Row:
    """One case. `bar`: what ratio (fastest peer / ours) is asked for, where there is one."""

    case: str
    ours_ms: float | None = None
    peers_ms: dict[str, float] = field(default_factory=dict)
    bar: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        if self.ours_ms is None or not self.peers_ms:
            return None
        return min(self.peers_ms.values()) / self.ours_ms

    def cells(self) -> list[str]:
        def number(x: float | None, unit: str = "") -> str:
            return "" if x is None else f"{x:,.3f}{unit}"

        peer = min(self.peers_ms, key=lambda name: self.peers_ms[name], default="")
        met = (
            "" if self.bar is None or self.ratio is None else ("met" if self.ratio >= self.bar else "NOT MET")
        )
        cells = [self.case, number(self.ours_ms), peer, number(self.peers_ms.get(peer))]
        bar = "" if self.bar is None else f">= {self.bar:g}"
        return [*cells, number(self.ratio, "x"), bar, met, self.note]


HEAD = ["case", "ours ms", "fastest peer", "its ms", "ratio", "bar", "", "note"]


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


class Clock:
    """Times calls on the GPU within a budget."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self._cache = torch.empty(256 << 20, dtype=torch.int8, device="cuda")  # larger than any L2

    def left(self) -> float:
        return self.end - time.monotonic()

    def once(self, call: Call) -> float:
        self._cache.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def kernels(self, call: Call) -> str:
        """Names of our kernels that a call launches, as the profiler saw them."""
        from torch.profiler import ProfilerActivity, profile

        try:
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                call()
                torch.cuda.synchronize()
        except RuntimeError as error:
            return f"unknown ({str(error).splitlines()[0][:100]})"
        found = [re.search(r"attn::cuda::kernel<(?:attn::cuda::)?(\w+)", e.key) for e in seen.key_averages()]
        return ", ".join(sorted({name.group(1) for name in found if name})) or "unknown"

    def medians(self, candidates: dict[str, Call], seconds: float = 4.0) -> dict[str, float]:
        """Milliseconds of each, in turn, 5 to 50 rounds. One that raises is left out."""
        able = {}
        for name, call in candidates.items():
            try:
                call()
                self.once(call)
                able[name] = call
            except Exception as error:
                if name == "attn":
                    raise
                print(f"  {name} left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
        if "attn" in able:
            print("  kernels:", self.kernels(able["attn"]))
        times: dict[str, list[float]] = {name: [] for name in able}
        start = time.monotonic()
        for i in range(50):
            if i >= 5 and time.monotonic() - start > seconds:
                break
            for name, call in able.items():
                times[name].append(self.once(call))
        return {name: statistics.median(values) for name, values in times.items()}


def qkv(
    tokens: int,
    heads: int = 16,
    kv_heads: int | None = None,
    dim: int = 128,
    grad: bool = False,
    dtype: torch.dtype = BF16,
) -> Any:
    shapes = [(1, h, tokens, dim) for h in (heads, kv_heads or heads, kv_heads or heads)]
    return [torch.randn(s, device="cuda", dtype=dtype, requires_grad=grad) for s in shapes]


def sdpa_backends(q: Any, k: Any, v: Any, causal: bool = True) -> dict[str, Call]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def with_backend(backend: SDPBackend) -> Any:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    names = {
        "SDPA flash": SDPBackend.FLASH_ATTENTION,
        "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
        "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    calls: dict[str, Call] = {name: functools.partial(with_backend, b) for name, b in names.items()}
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return calls
    x = [t.transpose(1, 2) for t in (q, k, v)]
    calls["flash_attn"] = lambda: flash_attn_func(*x, causal=causal)
    return calls


def difference(ours: Tensor, usual: Tensor) -> str:
    return f"largest difference {(ours - usual).abs().max().item():.1e}"


def has_kernel(op: str) -> bool:
    return bool(attn.info().build["CUDA architectures"][:1].isdigit()) and op not in attn._cuda.WITHOUT_KERNEL


def dense_forward(clock: Clock, row: Row) -> None:
    q, k, v = qkv(16384)
    ours = attn.attention(q, k, v, causal=True)
    usual = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    row.note = difference(ours, usual)
    finish(
        row, clock.medians({"attn": lambda: attn.attention(q, k, v, causal=True), **sdpa_backends(q, k, v)})
    )


def float_forward(clock: Clock, row: Row) -> None:
    q, k, v = qkv(4096, dtype=torch.float32)
    peers = sdpa_backends(q, k, v)  # flash and cuDNN refuse float32
    finish(row, clock.medians({"attn": lambda: attn.attention(q, k, v, causal=True), **peers}))


def backward(clock: Clock, row: Row, inputs: Any, ours: Call) -> None:
    dout = torch.randn_like(inputs[0])

    def backward_of(forward: Call) -> Call:
        out = forward()
        return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)

    calls = {"attn": backward_of(ours)}
    for name, forward in sdpa_backends(*inputs).items():
        try:
            calls[name] = backward_of(forward)
        except Exception as error:
            print(f"  {name} left out: {str(error).splitlines()[0][:150]}")
    finish(row, clock.medians(calls))


def dense_backward(clock: Clock, row: Row, tokens: int = 16384, dtype: torch.dtype = BF16) -> None:
    inputs = qkv(tokens, grad=True, dtype=dtype)
    backward(clock, row, inputs, lambda: attn.attention(*inputs, causal=True))


def random_blocks(tokens: int, density: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 1, tokens // BLOCK, tokens // BLOCK, generator=generator) < density
    return mask | torch.eye(tokens // BLOCK, dtype=torch.bool)


def layout_of(mask: Tensor, tokens: int) -> attn.BlockLayout:
    sizes = {"block_q": BLOCK, "block_k": BLOCK, "q_len": tokens, "kv_len": tokens}
    return attn.BlockLayout.from_mask(mask, **sizes)


def flex_mask(mask: Tensor) -> Any:
    """The same as a BlockMask whose blocks are all whole."""
    from torch.nn.attention.flex_attention import BlockMask

    count = mask.sum(-1, dtype=torch.int32)
    index = mask.int().argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        torch.zeros_like(count), torch.zeros_like(index), count, index, BLOCK_SIZE=BLOCK
    )


def sparse_against_dense(clock: Clock, row: Row) -> None:
    tokens = 65536
    q, k, v = qkv(tokens, heads=8)
    layout = layout_of(random_blocks(tokens, 0.1), tokens).to("cuda")
    ours = {"attn": lambda: attn.block_sparse_attention(q, k, v, layout)}
    finish(row, clock.medians({**ours, **sdpa_backends(q, k, v, causal=False)}))


def sparse_against_flex(density: float) -> Callable[[Clock, Row], None]:
    def run(clock: Clock, row: Row) -> None:
        from torch.nn.attention.flex_attention import flex_attention

        tokens = 16384
        q, k, v = qkv(tokens, heads=8)
        blocks = random_blocks(tokens, density)
        layout, mask = layout_of(blocks, tokens).to("cuda"), flex_mask(blocks.to("cuda"))
        flex = torch.compile(flex_attention)
        calls = {
            "attn": lambda: attn.block_sparse_attention(q, k, v, layout),
            "FlexAttention": lambda: flex(q, k, v, block_mask=mask),
        }
        row.note = difference(calls["attn"](), calls["FlexAttention"]())
        finish(row, clock.medians(calls))

    return run


def long_against_dense(function: Callable[..., Any]) -> Callable[[Clock, Row], None]:
    def run(clock: Clock, row: Row) -> None:
        q, k, v = qkv(131072, heads=8)
        finish(row, clock.medians({"attn": lambda: function(q, k, v), **sdpa_backends(q, k, v)}))

    return run


def decode(clock: Clock, row: Row) -> None:
    batch, tokens, kv_heads, dim = 16, 16384, 8, 128
    k, v = (torch.randn(batch, kv_heads, tokens, dim, device="cuda", dtype=BF16) for _ in range(2))
    q = torch.randn(batch, 4 * kv_heads, 1, dim, device="cuda", dtype=BF16)
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
    twin = torch.empty_like(k)
    # A copy moves as many bytes as decoding reads: k once in, once out, against k and v once in.
    calls = {
        "attn": lambda: attn.decode_attention(q, k, v, seqlens=lengths),
        "copy of k": lambda: twin.copy_(k),
    }
    finish(row, clock.medians(calls))


def hip_decode(clock: Clock, row: Row) -> None:
    """One new token against every key, or against those that HiP selects."""
    shape = (4, 8, 131072, 128)
    k, v = (torch.randn(shape, device="cuda", dtype=BF16) for _ in range(2))
    q = torch.randn(4, 8, 1, 128, device="cuda", dtype=BF16)
    calls = {"attn": lambda: attn.hip_attention(q, k, v), **sdpa_backends(q, k, v, causal=False)}
    finish(row, clock.medians(calls))


def merge(clock: Clock, row: Row) -> None:
    outs = torch.randn(4, 1, 16, 16384, 128, device="cuda", dtype=BF16)
    lses = torch.randn(4, 1, 16, 16384, device="cuda")
    # 5/8 of what is copied: four parts read and one written, against four read and four written.
    twin = torch.empty_like(outs)
    calls = {"attn": lambda: attn.merge_states(outs, lses), "copy of outs": lambda: twin.copy_(outs)}
    finish(row, clock.medians(calls))


def axis_gate(clock: Clock, row: Row) -> None:
    x = torch.randn(16, 1024, 4096, device="cuda", dtype=BF16)
    channel, time = (torch.rand(16, n, device="cuda", dtype=BF16) for n in (1024, 4096))
    twin = torch.empty_like(x)  # a copy moves as many bytes
    calls = {"attn": lambda: attn.axis_gate(x, channel, time), "copy of x": lambda: twin.copy_(x)}
    finish(row, clock.medians(calls))


def query_pool(queries: int) -> Callable[[Clock, Row], None]:
    def run(clock: Clock, row: Row) -> None:
        k, v = (torch.randn(16, 12, 16384, 64, device="cuda", dtype=BF16) for _ in range(2))
        q = torch.randn(1, 12, queries, 64, device="cuda", dtype=BF16)
        repeated = q.expand(16, -1, -1, -1)
        twin = torch.empty_like(k)  # a copy moves as many bytes as k and v have
        calls = {
            "attn": lambda: attn.query_pool(q, k, v),
            "copy of k": lambda: twin.copy_(k),
            **sdpa_backends(repeated, k, v, causal=False),
        }
        finish(row, clock.medians(calls))

    return run


def segment_pool(clock: Clock, row: Row) -> None:
    x = torch.randn(8, 16384, 768, device="cuda", dtype=BF16)
    ids = (torch.arange(16384, device="cuda", dtype=torch.int32) // 64).repeat(8, 1)
    twin = torch.empty_like(x)  # a copy moves twice the bytes
    calls = {
        "attn": lambda: attn.segment_pool(x, segment_ids=ids, num_segments=256),
        "amax of equal segments": lambda: x.view(8, 256, 64, 768).amax(2),
        "copy of x": lambda: twin.copy_(x),
    }
    finish(row, clock.medians(calls))


def window_pool(clock: Clock, row: Row) -> None:
    x = torch.randn(8, 16384, 768, device="cuda", dtype=BF16)
    moved, twin = x.mT.contiguous(), torch.empty_like(x)
    calls = {
        "attn": lambda: attn.window_pool(x, window=3),
        "max_pool1d, channels first": lambda: functional.max_pool1d(moved, 3, stride=1, padding=1),
        "copy of x": lambda: twin.copy_(x),  # moves as many bytes
    }
    finish(row, clock.medians(calls))


def tap_pool(clock: Clock, row: Row) -> None:
    side, channels = 56, 384
    x = torch.randn(16, side * side, channels, device="cuda", dtype=BF16)
    weights = torch.rand(16, side * side, 4, device="cuda", dtype=BF16)
    ninth = torch.full((channels, 1, 3, 3), 1 / 9, device="cuda", dtype=BF16)
    twin = torch.empty_like(x)

    def convolutions() -> Tensor:
        image = x.mT.reshape(16, channels, side, side)
        pooled = [image]
        for d in (1, 2, 3):
            pooled.append(functional.conv2d(image, ninth, padding=d, dilation=d, groups=channels))
        by_weight = zip(pooled, weights.view(16, 1, side, side, 4).unbind(-1), strict=True)
        return functools.reduce(torch.add, (image * weight for image, weight in by_weight))

    calls = {
        "attn": lambda: attn.tap_pool(x, weights, height=side, width=side),
        "convolutions": convolutions,
        "copy of x": lambda: twin.copy_(x),  # moves as many bytes
    }
    finish(row, clock.medians(calls))


def ponet(clock: Clock, row: Row) -> None:
    # Five reads and one write of a tensor at least: three copies of one.
    inputs = [torch.randn(8, 4096, 768, device="cuda", dtype=BF16) for _ in range(5)]
    twin = torch.empty_like(inputs[0])
    calls = {
        "attn": lambda: attn.ponet_mix(*inputs, num_heads=12, segment_length=64),
        "3 copies": lambda: [twin.copy_(x) for x in inputs[:3]],
    }
    finish(row, clock.medians(calls))


def ponet_training(clock: Clock, row: Row) -> None:
    # Gradients read five tensors and write five: with the forward pass, eight copies of one.
    inputs = [torch.randn(8, 4096, 768, device="cuda", dtype=BF16, requires_grad=True) for _ in range(5)]
    dout, twin = (torch.randn(8, 4096, 768, device="cuda", dtype=BF16) for _ in range(2))

    def step() -> None:
        torch.autograd.grad(attn.ponet_mix(*inputs, num_heads=12, segment_length=64), inputs, dout)

    finish(row, clock.medians({"attn": step, "8 copies": lambda: [twin.copy_(dout) for _ in range(8)]}))


def topk_nodes(clock: Clock, row: Row) -> None:
    score = torch.randn(1024 * 1024, device="cuda")
    cu = torch.arange(0, score.numel() + 1, 1024, dtype=torch.int32, device="cuda")
    calls = {
        "attn": lambda: torch.ops.attn.topk_nodes(score, cu, 0.5),
        "torch.topk of equal graphs": lambda: score.view(1024, 1024).topk(512),
    }
    finish(row, clock.medians(calls))


def linear(clock: Clock, row: Row) -> None:
    q, k, v = (torch.randn(1, 16, 65536, 128, device="cuda", dtype=BF16) for _ in range(3))
    twin = torch.empty_like(q)
    # Each input once in and the result once out: two copies of q.
    calls = {
        "attn": lambda: attn.linear_attention(q, k, v, causal=True),
        "copies of q and k": lambda: (twin.copy_(q), twin.copy_(k)),
    }
    finish(row, clock.medians(calls))


def prefix_pool(clock: Clock, row: Row) -> None:
    v = torch.randn(1, 16, 65536, 64, device="cuda", dtype=BF16)
    score = torch.randn(v.shape[:3], device="cuda", dtype=BF16)
    twin = torch.empty_like(v)  # a copy reads v and writes a result of its size
    calls = {"attn": lambda: attn.prefix_softmax_pool(score, v), "copy of v": lambda: twin.copy_(v)}
    finish(row, clock.medians(calls))


def flow(causal: bool) -> Callable[[Clock, Row], None]:
    def run(clock: Clock, row: Row) -> None:
        q, k, v = qkv(65536, heads=8, dim=64)
        calls = {"attn": lambda: attn.flow_attention(q, k, v, causal=causal)}
        finish(row, clock.medians({**calls, **sdpa_backends(q, k, v, causal=causal)}))

    return run


def flow_backward(clock: Clock, row: Row) -> None:
    inputs = qkv(65536, heads=8, dim=64, grad=True)
    backward(clock, row, inputs, lambda: attn.flow_attention(*inputs, causal=True))


def finish(row: Row, medians: dict[str, float]) -> None:
    row.ours_ms = medians.pop("attn", None)
    row.peers_ms = medians


def s2(q: Any, k: Any, v: Any) -> Any:
    return attn.s2_attention(q, k, v, block_size=64, local_blocks=16, vert_stride=16)


@dataclass(frozen=True)
class Case:
    """`seconds`: not started with less left."""

    name: str
    ops: tuple[str, ...]
    run: Callable[[Clock, Row], None]
    bar: float | None = None
    seconds: float = 15.0


CASES = (
    Case("dense causal forward D=128 T=16384", ("attend_forward",), dense_forward, 0.9),
    Case("dense causal backward D=128 T=16384", ("attend_backward",), dense_backward, 0.8),
    Case("10 % of blocks T=65536, dense", ("block_sparse_forward",), sparse_against_dense, 7.0),
    Case("S2 T=131072, local 1024, stride 16, dense", ("s2_forward",), long_against_dense(s2), 10.0),
    Case("HiP T=131072, dense", ("hip_select", "hip_attend"), long_against_dense(attn.hip_attention), 15.0),
    Case("HiP decode B=4 S=131072, dense", ("hip_select", "hip_attend"), hip_decode, 8.0),
    Case("decode B=16 S=16384 Hkv=8, copy", ("decode_forward",), decode, 0.8),
    *(
        Case(f"{d:.0%} of blocks T=16384, Flex", ("block_sparse_forward",), sparse_against_flex(d), 1.0, 45.0)
        for d in (0.05, 0.1, 0.25, 0.5, 1.0)
    ),
    Case("float32 causal forward D=128 T=4096", ("attend_forward",), float_forward),
    Case(
        "float32 causal backward D=128 T=4096",
        ("attend_backward",),
        functools.partial(dense_backward, tokens=4096, dtype=torch.float32),
    ),
    Case("merge_states 4 parts, copy", ("merge_states",), merge),
    Case("query_pool 1 query, B=16 H=12 L=16384", ("query_pool_forward",), query_pool(1), 0.7),
    Case("query_pool 64 queries, B=16 H=12 L=16384", ("query_pool_forward",), query_pool(64), 0.5),
    Case("segment_pool max, 64 tokens a segment", ("segment_pool_forward",), segment_pool),
    Case("window_pool max of 3 tokens", ("window_pool_forward",), window_pool),
    Case("tap_pool 56 x 56", ("tap_pool_forward",), tap_pool),
    Case("PoNet B=8 L=4096 C=768, copies", ("ponet_forward",), ponet, 0.62),
    Case("PoNet training B=8 L=4096 C=768, copies", ("ponet_forward", "ponet_backward"), ponet_training),
    Case("topk_nodes 1024 graphs of 1024, torch.topk", ("topk_nodes",), topk_nodes),
    Case("flow attention D=64 T=65536, dense", ("flow_forward",), flow(False)),
    Case("causal flow attention D=64 T=65536, dense", ("flow_causal_forward",), flow(True)),
    Case(
        "causal flow attention backward D=64 T=65536, dense",
        ("flow_causal_forward", "flow_causal_backward"),
        flow_backward,
    ),
    Case("prefix_softmax_pool H=16 T=65536 D=64, copy", ("prefix_pool_forward",), prefix_pool, 0.5),
    Case("linear causal H=16 T=65536 D=128, copies", ("linear_forward",), linear),
    Case("axis_gate 16 x 1024 x 4096, copy", ("axis_gate_forward",), axis_gate, 0.8),
)


def run_case(case: Case, clock: Clock) -> Row:
    row = Row(case.name, bar=case.bar)
    missing = [op for op in case.ops if not has_kernel(op)]
    if missing:
        row.note = "not run: no CUDA kernel for " + ", ".join(missing)
    elif clock.left() < case.seconds:
        row.note = "not run: no time left"
    else:
        try:
            case.run(clock, row)
        except Exception as error:
            row.note = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
    torch.cuda.empty_cache()
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", help="parts of the names of the cases to run; default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=180.0, help="no case starts after that")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    options = parser.parse_args()
    cases = [c for c in CASES if not options.cases or any(part in c.name for part in options.cases)]
    if options.list:
        for case in cases:
            print(case.name, "" if all(map(has_kernel, case.ops)) else "(no kernel in this build)")
        return 0
    if not torch.cuda.is_available():
        print("no GPU: nothing was timed", file=sys.stderr)
        return 2
    clock = Clock(options.seconds)
    rows = []
    for case in cases:
        print(case.name, flush=True)
        rows.append(run_case(case, clock))
        if options.json:  # after every case: what was measured survives a time limit
            facts = {
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "attn": attn.__version__,
            }
            found = [{**vars(row), "ratio": row.ratio} for row in rows]
            options.json.write_text(json.dumps({**facts, "rows": found}, indent=1) + "\n")
    print(table([HEAD, *(row.cells() for row in rows)]))
    return 1 if any(row.note.startswith("failed") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
