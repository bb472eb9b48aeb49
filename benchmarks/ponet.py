"""PoNet's token mixing against the released PyTorch form and FNet's Fourier mixing, forward and backward.

python benchmarks/ponet.py [--threads 2] [--json FILE]

D = 512, 8 heads, segments of 64 tokens, mixers only (no projections). "released" is the released layer's
arithmetic with ``scatter_reduce`` and ``max_pool1d``; "fnet" is the real part of ``torch.fft.fft2`` (float32:
there is no bfloat16 FFT, so bfloat16 inputs are converted, as FNet does). The floor counts the 6 T D elements
that a forward pass has to read or write.
"""

from __future__ import annotations

import torch
from common import Bench, arguments, keep_memory
from torch import Tensor

import attn

HEADS, WIDTH, SEGMENT = 8, 512, 64


def released(q: Tensor, k: Tensor, o: Tensor, segment: Tensor, local: Tensor, index: Tensor) -> Tensor:
    """PoNet's layer as released, for sequences without padding."""
    batch, length, width = k.shape

    def split(x: Tensor) -> Tensor:
        return x.view(batch, length, HEADS, width // HEADS).transpose(1, 2)

    q, k, o = split(q), split(k), split(o)
    pooled = q.mean(dim=-2, keepdim=True)
    weights = ((pooled @ k.mT) / (width // HEADS) ** 0.5).softmax(dim=-1)
    aggregate = weights @ k
    spread = index[None, :, None].expand(batch, length, width)
    maxima = segment.new_zeros(batch, (length + SEGMENT - 1) // SEGMENT, width)
    maxima = maxima.scatter_reduce(1, spread, segment, "amax", include_self=False)
    from_segment = split(maxima.gather(1, spread))
    from_window = torch.nn.functional.max_pool1d(local.mT, 3, stride=1, padding=1).mT
    mixed = (aggregate + from_segment) * o
    return mixed.transpose(1, 2).reshape(batch, length, width) + from_window


def fnet(x: Tensor) -> Tensor:
    return torch.fft.fft2(x.float()).real.to(x.dtype)


def main() -> None:
    args = arguments(__doc__.split("\n\n")[0]).parse_args()
    keep_memory()
    bench = Bench("ponet", args)
    for length in (512, 1024) if args.quick else (512, 1024, 2048, 4096, 8192, 16384):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [torch.randn(1, length, WIDTH, dtype=dtype) for _ in range(5)]
            index = torch.arange(length) // SEGMENT
            options = {"num_heads": HEADS, "segment_length": SEGMENT}
            at_least = (7.0 if dtype == torch.float32 else 12.0) if length >= 4096 else 4.0
            name = f"T={length} {str(dtype)[6:]}"

            def mix(inputs: list[Tensor] = inputs, options: dict = options) -> Tensor:
                return attn.ponet_mix(*inputs, **options)

            bench.run(
                f"{name} forward",
                {
                    "attn": mix,
                    "released": lambda x=inputs, i=index: released(*x, i),
                    "fnet": lambda x=inputs[0]: fnet(x),
                },
                gbytes=6 * length * WIDTH * inputs[0].element_size() * 1e-9,
                bars={"released": at_least, "fnet": 1.0},
            )
            leaves = [x.requires_grad_() for x in inputs]
            dout = torch.randn_like(inputs[0])

            def backward(function, leaves: list[Tensor], dout: Tensor) -> object:
                return torch.autograd.grad(function(*leaves), leaves, dout)

            bench.run(
                f"{name} forward+backward",
                {
                    "attn": lambda x=leaves, g=dout: backward(lambda *x: mix(list(x)), x, g),
                    "released": lambda x=leaves, g=dout, i=index: backward(lambda *x: released(*x, i), x, g),
                    "fnet": lambda x=leaves[:1], g=dout: backward(fnet, x, g),
                },
                bars={"released": 1.0, "fnet": 1.0},
            )
    bench.finish()


if __name__ == "__main__":
    main()
