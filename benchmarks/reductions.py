"""Window, segment, stencil and gate reductions against PyTorch's, forward and forward with backward.

python benchmarks/reductions.py [--threads 2] [--json FILE]

x is (16384, 512); segments of 64 tokens. gbytes: what has to be read and written, once.
"""

from __future__ import annotations

import torch
from common import Bench, arguments, keep_memory
from torch import Tensor

import attn

functional = torch.nn.functional


def gradients(function, leaves: list[Tensor], dout: Tensor) -> object:
    return torch.autograd.grad(function(*leaves), leaves, dout)


def window_cases(bench: Bench, length: int, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(1, length, width, dtype=dtype)
    dout, moved = torch.randn_like(x), x.transpose(1, 2).contiguous()
    for reduce, peer in (("max", functional.max_pool1d), ("mean", functional.avg_pool1d)):
        bar = (10.0 if dtype == torch.float32 else 20.0) if reduce == "max" else 1.0

        def ours(x: Tensor, reduce: str = reduce) -> Tensor:
            return attn.window_pool(x, window=3, reduce=reduce)

        def theirs(x: Tensor, peer=peer) -> Tensor:
            return peer(x.transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2)

        def channels_first(x: Tensor, peer=peer) -> Tensor:
            return peer(x, 3, stride=1, padding=1)

        bench.run(
            f"window {reduce} k=3 {str(dtype)[6:]} forward",
            {
                "attn": lambda f=ours: f(x),
                "pool1d": lambda f=theirs: f(x),
                "pool1d, channels first": lambda f=channels_first: f(moved),
            },
            gbytes=2 * x.numel() * x.element_size() * 1e-9,
            bars={"pool1d": bar},
        )
        leaf = x.detach().requires_grad_()
        bench.run(
            f"window {reduce} k=3 {str(dtype)[6:]} forward+backward",
            {
                "attn": lambda f=ours, y=leaf: gradients(f, [y], dout),
                "pool1d": lambda f=theirs, y=leaf: gradients(f, [y], dout),
            },
            bars={"pool1d": 1.0},
        )


def segment_cases(bench: Bench, length: int, width: int, dtype: torch.dtype) -> None:
    x = torch.randn(length, width, dtype=dtype)
    count = (length + 63) // 64
    ids = (torch.arange(length, dtype=torch.int32) // 64)[None]
    spread = ids[0].long()[:, None].expand(length, width)
    cu = torch.arange(count + 1, dtype=torch.int32).mul(64).clamp(max=length)
    dout = torch.randn(count, width, dtype=dtype)
    for reduce, name in (("max", "amax"), ("mean", "mean")):

        def ours(x: Tensor, reduce: str = reduce) -> Tensor:
            return attn.segment_pool(x, cu_seqlens=cu, reduce=reduce)

        def by_ids(x: Tensor, reduce: str = reduce) -> Tensor:
            return attn.segment_pool(x[None], segment_ids=ids, num_segments=count, reduce=reduce)[0]

        def theirs(x: Tensor, name: str = name) -> Tensor:
            return x.new_zeros(count, width).scatter_reduce(0, spread, x, name, include_self=False)

        bench.run(
            f"segment {reduce} {str(dtype)[6:]} forward",
            {
                "attn": lambda f=ours: f(x),
                "attn, ids": lambda f=by_ids: f(x),
                "scatter_reduce": lambda f=theirs: f(x),
            },
            gbytes=x.numel() * x.element_size() * 1e-9,
            bars={"scatter_reduce": 1.0},
        )
        leaf = x.detach().requires_grad_()
        bench.run(
            f"segment {reduce} {str(dtype)[6:]} forward+backward",
            {
                "attn": lambda f=ours, y=leaf: gradients(f, [y], dout),
                "scatter_reduce": lambda f=theirs, y=leaf: gradients(f, [y], dout),
            },
            bars={"scatter_reduce": 20.0},
        )


def tap(x: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """The released form with ``avg_pool2d``-like sums by unfolding."""
    batch, _, channels = x.shape
    image = x.mT.reshape(batch, channels, height, width)
    pooled = [image]
    for d in (1, 2, 3):
        columns = functional.unfold(image, 3, dilation=d, padding=d)
        pooled.append(columns.view(batch, channels, 9, height, width).mean(2))
    mixed = (torch.stack(pooled, -1) * weights.view(batch, 1, height, width, 4)).sum(-1)
    return mixed.flatten(2).mT


def other_cases(bench: Bench, dtype: torch.dtype) -> None:
    side, channels = 56, 192
    x = torch.randn(2, side * side, channels, dtype=dtype)
    weights = torch.rand(2, side * side, 4).softmax(-1).to(dtype)
    dout = torch.randn_like(x)
    leaves = [y.detach().requires_grad_() for y in (x, weights)]

    def ours(x: Tensor, weights: Tensor) -> Tensor:
        return attn.tap_pool(x, weights, height=side, width=side)

    def theirs(x: Tensor, weights: Tensor) -> Tensor:
        return tap(x, weights, side, side)

    bench.run(
        f"tap {str(dtype)[6:]} forward",
        {"attn": lambda: ours(x, weights), "unfold": lambda: theirs(x, weights)},
        gbytes=2 * x.numel() * x.element_size() * 1e-9,
        bars={"unfold": 1.0},
    )
    bench.run(
        f"tap {str(dtype)[6:]} forward+backward",
        {"attn": lambda: gradients(ours, leaves, dout), "unfold": lambda: gradients(theirs, leaves, dout)},
        bars={"unfold": 1.0},
    )
    x = torch.randn(8, 400, 1000, dtype=dtype)
    gates = [torch.rand(8, 400, dtype=dtype), torch.rand(8, 1000, dtype=dtype)]
    dout = torch.randn_like(x)
    leaves = [y.detach().requires_grad_() for y in (x, *gates)]

    def eager(x: Tensor, channel: Tensor, time: Tensor) -> Tensor:
        return x * (channel[:, :, None] + time[:, None, :])

    bench.run(
        f"axis_gate {str(dtype)[6:]} forward",
        {"attn": lambda: attn.axis_gate(x, *gates), "eager": lambda: eager(x, *gates)},
        gbytes=2 * x.numel() * x.element_size() * 1e-9,
        bars={"eager": 1.0},
    )
    bench.run(
        f"axis_gate {str(dtype)[6:]} forward+backward",
        {
            "attn": lambda: gradients(attn.axis_gate, leaves, dout),
            "eager": lambda: gradients(eager, leaves, dout),
        },
        bars={"eager": 1.0},
    )


def main() -> None:
    args = arguments(__doc__.split("\n\n")[0]).parse_args()
    keep_memory()
    bench = Bench("reductions", args)
    length = 2048 if args.quick else 16384
    for dtype in (torch.float32, torch.bfloat16):
        window_cases(bench, length, 512, dtype)
        segment_cases(bench, length, 512, dtype)
        other_cases(bench, dtype)
    bench.finish()


if __name__ == "__main__":
    main()
