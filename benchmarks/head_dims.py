"""Dense forward for many head dims, as a rate per flop relative to D = 64, and fp16 against bf16.

python benchmarks/head_dims.py [--json FILE]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, attention_gflop, keep_memory

import attn

DIMS = (64, 6, 32, 40, 48, 80, 96, 128, 160, 192, 256)


def main() -> None:
    args = arguments(__doc__.split("\n\n")[0]).parse_args()
    keep_memory()  # page faults of results are nobody's attention
    bench = Bench("head_dims", args)
    length = 256 if args.quick else 4096
    for dtype in (torch.float32, torch.bfloat16):
        base = None
        for dim in DIMS[:3] if args.quick else DIMS:
            q, k, v = (torch.randn(1, 8, length, dim, dtype=dtype) for _ in range(3))
            row = bench.run(
                f"D={dim} {str(dtype)[6:]} T={length}",
                {"attn": lambda q=q, k=k, v=v: attn.attention(q, k, v)},
                gflop=attention_gflop(length, length, 8, dim),
                dtype=dtype,
            )
            if row is None:
                continue
            base = base or row["gflops"]
            row["share_of_d64"] = row["gflops"] / base
            print(f"    {row['share_of_d64'] * 100:.0f} % of the rate at D = 64")
    q, k, v = (torch.randn(1, 8, length, 64) for _ in range(3))
    half = [x.half() for x in (q, k, v)]
    brain = [x.bfloat16() for x in (q, k, v)]
    bench.run(
        "fp16 against bf16, D=64",
        {"attn": lambda: attn.attention(*half), "bf16": lambda: attn.attention(*brain)},
        bars={"bf16": 1 / 1.5},
    )
    bench.finish()


if __name__ == "__main__":
    main()
