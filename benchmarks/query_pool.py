"""Pooling by a few shared queries against the two-einsum form, and the memory that repeating them would take.

python benchmarks/query_pool.py [--threads 2] [--json FILE]

The latent pooler of LLM embeddings (768 shared latents, 32 layer keys, 32 heads), the same with a scaled-down
number of keys, one query over many keys (PoNet's global stage) and multiset pooling of a packed batch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from common import Bench, arguments, attention_gflop, keep_memory
from torch import Tensor

import attn


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [1, H, M, D] shared, k and v [B, H, L, D]."""
    weights = torch.einsum("hmd,bhld->bhml", q[0] * q.shape[-1] ** -0.5, k).softmax(-1)
    return torch.einsum("bhml,bhld->bhmd", weights, v)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v)


def padded(q: Tensor, k: Tensor, v: Tensor, cu: list[int]) -> Tensor:
    """A packed batch as one writes it today: padded, masked."""
    lengths = [j - i for i, j in pairwise(cu)]
    longest, heads, width = max(lengths), k.shape[1], k.shape[3]
    keys, values = (x.new_zeros(len(lengths), heads, longest, width) for x in (k, v))
    mask = torch.zeros(len(lengths), 1, 1, longest, dtype=torch.bool)
    for n, (start, length) in enumerate(zip(cu, lengths, strict=False)):
        keys[n, :, :length] = k[0, :, start : start + length]
        values[n, :, :length] = v[0, :, start : start + length]
        mask[n, ..., :length] = True
    shared = q.expand(len(lengths), -1, -1, -1)
    return torch.nn.functional.scaled_dot_product_attention(shared, keys, values, attn_mask=mask)


def main() -> None:
    args = arguments(__doc__.split("\n\n")[0]).parse_args()
    keep_memory()
    bench = Bench("query_pool", args)
    shapes = [  # name, batch, heads, queries, keys, head dim, bar
        ("latents 768 x 32 keys", 8, 32, 768, 32, 64, 2.5),
        ("latents 768 x 32 keys, batch 1", 1, 32, 768, 32, 64, 1.0),
        ("latents 768 x 512 keys", 2, 32, 768, 512, 64, 1.0),
        ("one query x 4096 keys", 4, 8, 1, 4096, 64, 1.0),
        ("seeds 16 x 1024 keys", 8, 4, 16, 1024, 32, 1.0),
    ]
    for name, batch, heads, queries, keys, dim, bar in shapes[:1] if args.quick else shapes:
        for dtype in (torch.float32, torch.bfloat16):
            q = torch.randn(1, heads, queries, dim, dtype=dtype)
            k, v = (torch.randn(batch, heads, keys, dim, dtype=dtype) for _ in range(2))
            gflop = attention_gflop(queries, keys, heads * batch, dim)
            bench.run(
                f"{name} {str(dtype)[6:]} forward",
                {
                    "attn": lambda x=(q, k, v): attn.query_pool(*x),
                    "einsum": lambda x=(q, k, v): einsum(*x),
                    "sdpa": lambda x=(q, k, v): sdpa(*x),
                },
                gflop=gflop,
                dtype=dtype,
                bars={"einsum": bar},
            )
            leaves = [x.requires_grad_() for x in (q, k, v)]
            dout = torch.randn(batch, heads, queries, dim, dtype=dtype)
            bench.run(
                f"{name} {str(dtype)[6:]} forward+backward",
                {
                    "attn": lambda x=leaves, g=dout: torch.autograd.grad(attn.query_pool(*x), x, g),
                    "einsum": lambda x=leaves, g=dout: torch.autograd.grad(einsum(*x), x, g),
                },
                gflop=3.5 * gflop,
                dtype=dtype,
                bars={"einsum": 1.0},
            )
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(10, 90, (64 if args.quick else 1000,), generator=generator)
    cu = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.randn(1, 4, 8, 32, dtype=dtype)
        k, v = (torch.randn(1, 4, int(cu[-1]), 32, dtype=dtype) for _ in range(2))
        bench.run(
            f"{len(sizes)} graphs of 10 to 89 nodes, 8 seeds, {str(dtype)[6:]} forward",
            {
                "attn": lambda x=(q, k, v): attn.query_pool(*x, cu_seqlens=cu),
                "padded sdpa": lambda x=(q, k, v): padded(*x, cu.tolist()),
            },
            bars={"padded sdpa": 1.0},
        )
    bench.finish()


if __name__ == "__main__":
    main()
