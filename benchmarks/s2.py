"""S2 attention at long context against PyTorch SDPA causal (timed on one head, its time multiplied by the
heads) and against our own dense kernel per kept flop; forward and a training step.

    python benchmarks/s2.py [--length 131072] [--json FILE]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, attention_gflop, keep_memory

import attn
from attn.bench.timing import once

sdpa = torch.nn.functional.scaled_dot_product_attention


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--length", type=int, default=131072)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    args = parser.parse_args()
    keep_memory()  # page faults of results are nobody's attention
    bench = Bench("s2", args)
    length = 2048 if args.quick else args.length
    options = {"block_size": 64, "local_blocks": 16, "vert_stride": 16}
    q, k, v = (torch.randn(1, args.heads, length, args.dim, dtype=torch.bfloat16) for _ in range(3))
    dense_length = min(length, 8192)
    d = [x[:, :, :dense_length].contiguous() for x in (q, k, v)]
    dense = bench.run(
        f"dense bf16 T={dense_length} causal",
        {"attn": lambda: attn.attention(*d, causal=True)},
        gflop=attention_gflop(dense_length, dense_length, args.heads, args.dim, causal=True),
        dtype=torch.bfloat16,
    )
    density = attn.patterns.strided(length, length, num_heads=args.heads, **options).density()
    kept = attention_gflop(length, length, args.heads, args.dim) * density
    name = f"s2 bf16 T={length} H={args.heads} D={args.dim} local 1024 stride 16"
    row = bench.run(
        f"{name} forward",
        {"attn": lambda: attn.s2_attention(q, k, v, **options)},
        gflop=kept,
        dtype=torch.bfloat16,
    )
    if row is None:
        bench.finish()
        return
    one = [x[:, :1].contiguous() for x in (q, k, v)]
    sdpa_ms = once(lambda: sdpa(*one, is_causal=True)) * 1e3 * args.heads
    row["ms"]["sdpa (one head x heads)"] = sdpa_ms
    row["ratio"]["sdpa"] = sdpa_ms / row["ms"]["attn"]
    row["bar"] = {"sdpa": 25.3}
    if dense:
        row["share_of_dense"] = row["gflops"] / dense["gflops"]
    print(
        f"    {row['ratio']['sdpa']:.1f}x SDPA, density {density:.4f}, "
        f"{row.get('share_of_dense', 0) * 100:.0f} % of the dense rate per kept flop"
    )
    grad = torch.randn_like(q)
    for x in (q, k, v):
        x.requires_grad_()

    def step():
        for x in (q, k, v):
            x.grad = None
        attn.s2_attention(q, k, v, **options).backward(grad)

    bench.run(f"{name} forward+backward", {"attn": step}, gflop=3.5 * kept, dtype=torch.bfloat16)
    bench.finish()


if __name__ == "__main__":
    main()
