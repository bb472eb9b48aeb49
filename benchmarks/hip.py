"""HiP attention, selection included, against PyTorch SDPA causal. SDPA is quadratic, so from --one-head-
from tokens on it is timed on one head and its time multiplied by the number of heads (the row says so).

    python benchmarks/hip.py [--json FILE] [--lengths 32768 131072]
"""

from __future__ import annotations

import statistics

import torch
from common import Bench, arguments, attention_gflop

import attn
from attn.bench.timing import interleaved, once

sdpa = torch.nn.functional.scaled_dot_product_attention


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[8192, 32768, 131072])
    parser.add_argument("--one-head-from", type=int, default=65536)
    parser.add_argument("--heads", type=int, default=8)
    args = parser.parse_args()
    bench = Bench("hip", args)
    bars = {32768: 10.0, 131072: 40.0}
    for length in [2048] if args.quick else args.lengths:
        q, k, v = (torch.randn(1, args.heads, length, 64, dtype=torch.bfloat16) for _ in range(3))
        hip = lambda: attn.hip_attention(q, k, v)  # noqa: E731
        select = lambda: attn.hip_select(q, k)  # noqa: E731
        dense = lambda: attn.attention(q, k, v, causal=True)  # noqa: E731
        gflop = attention_gflop(length, length, args.heads, 64, causal=True)
        name = f"T={length} H={args.heads} D=64 bf16"
        if length < args.one_head_from:
            candidates = {
                "hip": hip,
                "sdpa": lambda: sdpa(q, k, v, is_causal=True),
                "select": select,
                "dense": dense,
            }
            bench.run(name, candidates, ours="hip", bars={"sdpa": bars.get(length, 1.0)})
            continue
        if not bench.wanted(name):
            continue
        one = [x[:, :1].contiguous() for x in (q, k, v)]
        hip()
        sdpa_one = once(lambda: sdpa(*one, is_causal=True))
        times = interleaved({"hip": hip, "select": select}, bench.rounds)
        ms = {key: statistics.median(values) * 1e3 for key, values in times.items()}
        ms["sdpa"] = sdpa_one * args.heads * 1e3
        row = {
            "case": name + " (sdpa: one head x heads)",
            "ms": ms,
            "spread": {},
            "ratio": {"sdpa": ms["sdpa"] / ms["hip"]},
            "bar": {"sdpa": bars.get(length, 1.0)},
            "dense_gflop": gflop,
        }
        bench.rows.append(row)
        print(
            f"{row['case']}: hip {ms['hip']:.0f} ms (selection {ms['select']:.0f}), "
            f"sdpa {ms['sdpa']:.0f} ms, {row['ratio']['sdpa']:.1f}x",
            flush=True,
        )
    bench.finish()


if __name__ == "__main__":
    main()
