"""Short sequences and small batches against PyTorch SDPA, and the overhead of one call (T = 1).

python benchmarks/small.py [--json FILE]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, attention_gflop, keep_memory

import attn

sdpa = torch.nn.functional.scaled_dot_product_attention


def main() -> None:
    args = arguments(__doc__.split("\n\n")[0]).parse_args()
    keep_memory()  # page faults of results are nobody's attention
    bench = Bench("small", args)
    shapes = [(1, 1, 1), (1, 8, 1)] + [
        (b, h, t) for t in (128, 256, 512) for b, h in ((1, 1), (1, 2), (1, 8), (4, 12))
    ]
    for batch, heads, length in shapes[:3] if args.quick else shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for causal in (False, True):
                q, k, v = (torch.randn(batch, heads, length, 64, dtype=dtype) for _ in range(3))
                bench.run(
                    f"B={batch} H={heads} T={length} {str(dtype)[6:]} {'causal' if causal else 'full'}",
                    {
                        "attn": lambda q=q, k=k, v=v, c=causal: attn.attention(q, k, v, causal=c),
                        "sdpa": lambda q=q, k=k, v=v, c=causal: sdpa(q, k, v, is_causal=c),
                    },
                    gflop=attention_gflop(length, length, batch * heads, 64, causal=causal),
                    bars={"sdpa": 0.5 if length == 1 else 1.0},
                )
    bench.finish()


if __name__ == "__main__":
    main()
