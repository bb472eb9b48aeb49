"""Linear attention (elu + 1) against its usual PyTorch forms, B=1 H=8 D=64: causally that in chunks of 64.

python benchmarks/linear.py [--threads 1] [--json FILE]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, keep_memory
from scan_common import eager_scan, linear_in_length, memory, qkv, training

import attn


def causal(q, k, v):
    return attn.linear_attention(q, k, v, causal=True)


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays with the process")
    args = parser.parse_args()
    if args.keep_memory:
        keep_memory()
    bench = Bench("linear", args)
    for length in (512,) if args.quick else (4096, 16384):
        for dtype in (torch.float32, torch.bfloat16):
            x = qkv(length, dtype)
            name = f"linear {str(dtype)[6:]} T={length}"
            bar = 5.2 if dtype == torch.float32 else 5.0
            # S and q S, multiply and add; half a chunk of 64 in two more where causal.
            bench.run(
                f"{name} causal forward",
                {
                    "attn": lambda x=x: causal(*x),
                    "chunked": lambda x=x: eager_scan.linear_attention_causal(*x),
                },
                gflop=(4 * 64 * 64 + 4 * 64 * 32) * length * 8 * 1e-9,
                dtype=dtype,
                bars={"chunked": bar},
            )
            bench.run(
                f"{name} causal forward+backward",
                {"attn": training(causal, x), "chunked": training(eager_scan.linear_attention_causal, x)},
            )
            bench.run(
                f"{name} full forward",
                {
                    "attn": lambda x=x: attn.linear_attention(*x),
                    "eager": lambda x=x: eager_scan.linear_attention(*x),
                },
                gflop=4 * 64 * 64 * length * 8 * 1e-9,
                dtype=dtype,
            )
    linear_in_length(bench, "linear float32 causal", causal, lambda t: qkv(t, torch.float32))
    linear_in_length(
        bench, "linear float32 causal one head", causal, lambda t: qkv(t, torch.float32, heads=1)
    )
    if bench.wanted("memory"):
        length = 4096 if args.quick else 65536
        memory(bench, "linear causal forward", "return attn.linear_attention(*x, causal=True)", length)
    bench.finish()


if __name__ == "__main__":
    main()
