"""Prefix-softmax pooling against cumulative sums in PyTorch, B=1 H=8 D=64. Floor: v and out once.

python benchmarks/prefix.py [--threads 1] [--json FILE]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, keep_memory
from scan_common import eager_scan, linear_in_length, training

import attn


def draw(length: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.randn(1, 8, length, dtype=dtype), torch.randn(1, 8, length, 64, dtype=dtype)]


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--keep-memory", action="store_true", help="freed memory stays with the process")
    args = parser.parse_args()
    if args.keep_memory:
        keep_memory()
    bench = Bench("prefix", args)
    for length in (512,) if args.quick else (4096, 16384):
        for dtype in (torch.float32, torch.bfloat16):
            x = draw(length, dtype)
            name = f"prefix {str(dtype)[6:]} T={length}"
            bench.run(
                f"{name} forward",
                {
                    "attn": lambda x=x: attn.prefix_softmax_pool(*x),
                    "cumsum": lambda x=x: eager_scan.prefix_softmax_pool(*x),
                },
                gbytes=2 * x[1].numel() * x[1].element_size() * 1e-9,
            )
            bench.run(
                f"{name} forward+backward",
                {
                    "attn": training(attn.prefix_softmax_pool, x),
                    "cumsum": training(eager_scan.prefix_softmax_pool, x),
                },
            )
    linear_in_length(bench, "prefix float32", attn.prefix_softmax_pool, draw)
    bench.finish()


if __name__ == "__main__":
    main()
