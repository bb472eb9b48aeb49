"""Agent attention against two scaled_dot_product_attention calls, B=1 H=8 D=64, 64 agents.

    python benchmarks/agent.py [--threads 1] [--json FILE]

The floor is arithmetic: 8 r T D H floating point operations for the two attentions.
"""

from __future__ import annotations

import torch
from common import Bench, arguments, keep_memory
from scan_common import eager_scan, linear_in_length, qkv

import attn


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays with the process")
    args = parser.parse_args()
    if args.keep_memory:
        keep_memory()
    bench = Bench("agent", args)
    for length in (512,) if args.quick else (4096, 16384):
        for dtype in (torch.float32, torch.bfloat16):
            x = qkv(length, dtype)
            agents = torch.randn(1, 8, 64, 64, dtype=dtype)
            bias = torch.randn(8, 64, length, dtype=dtype)
            name = f"agent {str(dtype)[6:]} T={length}"
            bench.run(
                f"{name} forward",
                {
                    "attn": lambda x=x, a=agents: attn.agent_attention(*x, a),
                    "two sdpa": lambda x=x, a=agents: eager_scan.agent_attention(*x, a),
                },
                gflop=8 * 64 * length * 64 * 8 * 1e-9,
                dtype=dtype,
                bars={"two sdpa": 2.5 if dtype == torch.float32 else 5.0},
            )
            bench.run(
                f"{name} forward with two biases",
                {
                    "attn": lambda x=x, a=agents, b=bias: attn.agent_attention(
                        *x, a, agent_bias=b, query_bias=b.mT
                    ),
                    "two sdpa": lambda x=x, a=agents, b=bias: eager_scan.agent_attention(*x, a, b, b.mT),
                },
            )

    def draw(length):
        return [*qkv(length, torch.float32), torch.randn(1, 8, 64, 64)]

    linear_in_length(bench, "agent float32", attn.agent_attention, draw)
    bench.finish()


if __name__ == "__main__":
    main()
