"""Window, document and random block masks against compiled FlexAttention (forward), and against masked SDPA
forward + backward. "share of dense" is our rate per kept flop relative to our own dense rate at the same
length.

    python benchmarks/sparse.py [--json FILE]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, attention_gflop, keep_memory
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attn

HEADS = 8
sdpa = torch.nn.functional.scaled_dot_product_attention


def masks(length: int):
    """(name, our layout, FlexAttention's mask function, its block size)"""
    yield (
        "window 256",
        attn.patterns.sliding_window(length, length, window=(255, 0), causal=True),
        lambda b, h, q, k: (k <= q) & (q - k < 256),
        128,
    )
    document = length // 8
    cu = torch.arange(0, length + 1, document, dtype=torch.int32)
    yield (
        "document T/8",
        attn.patterns.document(cu, causal=True),
        lambda b, h, q, k: (k <= q) & (q // document == k // document),
        128,
    )
    for block in (64, 128):
        n = length // block
        keep = torch.rand(1, 1, n, n, generator=torch.Generator().manual_seed(block)) < 0.1
        keep |= torch.eye(n, dtype=torch.bool)
        layout = attn.BlockLayout.from_mask(keep, block_q=block, block_k=block, q_len=length, kv_len=length)
        yield (
            f"random 10 % of {block}x{block}",
            layout,
            lambda b, h, q, k, m=keep[0, 0], s=block: m[q // s, k // s],
            block,
        )


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument(
        "--no-flex", action="store_true", help="leave FlexAttention out (it compiles for seconds a mask)"
    )
    parser.add_argument("--dim", type=int, default=64, help="features of a head (default 64)")
    args = parser.parse_args()
    keep_memory()  # page faults of results are nobody's attention
    bench = Bench("sparse", args)
    for length in [1024] if args.quick else (4096, 16384):
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(1, HEADS, length, args.dim, dtype=dtype) for _ in range(3))
            dense = bench.run(
                f"dense {str(dtype)[6:]} T={length}",
                {"attn": lambda: attn.attention(q, k, v)},
                gflop=attention_gflop(length, length, HEADS, args.dim),
                dtype=dtype,
            )
            for name, layout, rule, block in masks(length):
                title = f"{name} {str(dtype)[6:]} T={length}"
                if not bench.wanted(title):
                    continue
                kept = attention_gflop(length, length, HEADS, args.dim) * layout.density()
                candidates = {"attn": lambda layout=layout: attn.block_sparse_attention(q, k, v, layout)}
                if not args.no_flex:
                    flex = torch.compile(flex_attention, dynamic=False)
                    mask = create_block_mask(rule, None, None, length, length, device="cpu", BLOCK_SIZE=block)
                    candidates["flex"] = lambda flex=flex, mask=mask: flex(q, k, v, block_mask=mask)
                row = bench.run(
                    title,
                    candidates,
                    gflop=kept,
                    dtype=dtype,
                    bars={"flex": 2.0 if dtype == torch.float32 else 6.0},
                )
                if row and dense:
                    row["share_of_dense"] = row["gflops"] / dense["gflops"]
                    print(
                        f"    density {layout.density():.3f}, "
                        f"{row['share_of_dense'] * 100:.0f} % of the dense rate per kept flop"
                    )
                if length <= 4096:
                    train(bench, title, layout, [x.detach().clone().requires_grad_() for x in (q, k, v)])
    bench.finish()


def train(bench: Bench, title: str, layout: attn.BlockLayout, qkv: list[torch.Tensor]) -> None:
    grad = torch.randn_like(qkv[0])
    mask = layout.to_token_mask()

    def step(form):
        def run():
            for x in qkv:
                x.grad = None
            form().backward(grad)

        return run

    bench.run(
        f"forward+backward {title}",
        {
            "attn": step(lambda: attn.block_sparse_attention(*qkv, layout)),
            "sdpa masked": step(lambda: sdpa(*qkv, attn_mask=mask)),
        },
    )


if __name__ == "__main__":
    main()
