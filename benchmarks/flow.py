"""Flow attention against the released PyTorch forms, B=1 H=8 D=64: forward, and forward with backward.

    python benchmarks/flow.py [--threads 1] [--keep-memory] [--json FILE]

The released causal form stores two [T, D, D] tensors a head, so it runs at T=4096 only. Memory that is
returned to the system after each call costs it about half of its time; ``--keep-memory`` keeps it. The floor
is arithmetic: 4 T D (D + 2) H multiply-adds for the full form, 4 T D (D + 24) H causally (chunks of 64).
"""

from __future__ import annotations

import torch
from common import Bench, arguments, keep_memory
from scan_common import eager_scan, linear_in_length, memory, qkv, training

import attn


def causal(q, k, v):
    return attn.flow_attention(q, k, v, causal=True)


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays with the process")
    args = parser.parse_args()
    if args.keep_memory:
        keep_memory()
    bench = Bench("flow", args)
    for length in (512,) if args.quick else (4096, 16384):
        for dtype in (torch.float32, torch.bfloat16):
            x = qkv(length, dtype)
            name = f"flow {str(dtype)[6:]} T={length}"
            # Two products of T D D a head, multiply and add.
            gflop = 4 * length * 64 * 64 * 8 * 1e-9
            # Heads last: as the released module calls it, [B, T, H, D] transposed and not copied.
            for layout, y in (("", x), (" heads last", qkv(length, dtype, heads_last=True))):
                bench.run(
                    f"{name}{layout} forward",
                    {
                        "attn": lambda y=y: attn.flow_attention(*y),
                        "released": lambda y=y: eager_scan.flow_attention(*y),
                    },
                    gflop=gflop,
                    dtype=dtype,
                    bars={"released": 4.0 if dtype == torch.float32 else 8.0},
                )
            bench.run(
                f"{name} forward+backward",
                {
                    "attn": training(attn.flow_attention, x),
                    "released": training(eager_scan.flow_attention, x),
                },
            )
            # And half a chunk of 64 in two more.
            gflop = (4 * 64 * 64 + 4 * 64 * 32) * length * 8 * 1e-9
            forward = {"attn": lambda x=x: causal(*x)}
            both = {"attn": training(causal, x)}
            if length <= 4096 and dtype == torch.float32:
                forward["released"] = lambda x=x: eager_scan.flow_attention_causal(*x)
                both["released"] = training(eager_scan.flow_attention_causal, x)
            bench.run(f"{name} causal forward", forward, gflop=gflop, dtype=dtype, bars={"released": 150.0})
            bench.run(f"{name} causal forward+backward", both, bars={"released": 100.0})
    linear_in_length(bench, "flow float32", attn.flow_attention, lambda t: qkv(t, torch.float32))
    linear_in_length(bench, "flow float32 causal", causal, lambda t: qkv(t, torch.float32))
    if bench.wanted("memory"):
        length = 4096 if args.quick else 65536
        memory(bench, "flow causal forward", "return attn.flow_attention(*x, causal=True)", length)
        memory(bench, "flow forward", "return attn.flow_attention(*x)", length)
    bench.finish()


if __name__ == "__main__":
    main()
