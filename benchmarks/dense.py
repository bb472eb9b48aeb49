"""Dense attention against PyTorch SDPA and, in bf16, against the plain matmul form, forward and forward +
backward.

python benchmarks/dense.py [--json FILE] [--only bf16]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, attention_gflop, keep_memory

import attn

sdpa = torch.nn.functional.scaled_dot_product_attention


class Naive:
    """softmax(q k^T) v with every intermediate written into memory that is reused."""

    def __init__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> None:
        self.q, self.k, self.v = q * q.shape[-1] ** -0.5, k, v
        self.scores = torch.empty(*q.shape[:-1], k.shape[-2], dtype=q.dtype)
        self.weights = torch.empty_like(self.scores)
        self.out = torch.empty_like(q)
        self.mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1) if causal else None

    def __call__(self) -> torch.Tensor:
        torch.matmul(self.q, self.k.transpose(-1, -2), out=self.scores)
        if self.mask is not None:
            self.scores.masked_fill_(self.mask, float("-inf"))
        torch.softmax(self.scores, -1, out=self.weights)
        return torch.matmul(self.weights, self.v, out=self.out)


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(
            torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1), float("-inf")
        )
    return torch.softmax(scores, -1) @ v


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument(
        "--no-naive", action="store_true", help="leave the plain matmul form out (it needs gigabytes)"
    )
    parser.add_argument("--lengths", type=int, nargs="*", default=[1024, 2048, 4096, 8192, 16384])
    args = parser.parse_args()
    keep_memory()  # page faults of results are nobody's attention
    bench = Bench("dense", args)
    lengths = [256] if args.quick else args.lengths
    for backward in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            for dim in (64, 128):
                for length in lengths:
                    for causal in (False, True):
                        case(bench, args.heads, dtype, dim, length, causal, backward, not args.no_naive)
    bench.finish()


def case(
    bench: Bench,
    heads: int,
    dtype: torch.dtype,
    dim: int,
    length: int,
    causal: bool,
    backward: bool,
    with_naive: bool,
) -> None:
    kind = "forward+backward" if backward else "forward"
    name = f"{kind} {str(dtype)[6:]} T={length} D={dim} {'causal' if causal else 'full'}"
    if not bench.wanted(name) or (backward and length > 8192):
        return
    q, k, v = (torch.randn(1, heads, length, dim, dtype=dtype) for _ in range(3))
    fits = with_naive and heads * length * length * q.element_size() * (4 if backward else 2) < 8e9
    bf16 = dtype == torch.bfloat16
    candidates = {}
    if backward:
        for x in (q, k, v):
            x.requires_grad_()
        grad = torch.randn(1, heads, length, dim, dtype=dtype)

        def train(form):
            def step():
                for x in (q, k, v):
                    x.grad = None
                form().backward(grad)

            return step

        candidates["attn"] = train(lambda: attn.attention(q, k, v, causal=causal))
        candidates["sdpa"] = train(lambda: sdpa(q, k, v, is_causal=causal))
        if bf16 and fits:
            candidates["naive"] = train(lambda: naive(q, k, v, causal))
        bars = {"sdpa": 2.0 if bf16 else 1.8, "naive": 1.0}
    else:
        candidates["attn"] = lambda: attn.attention(q, k, v, causal=causal)
        candidates["sdpa"] = lambda: sdpa(q, k, v, is_causal=causal)
        if bf16 and fits:
            candidates["naive"] = Naive(q, k, v, causal)
        bars = {"sdpa": 4.0 if bf16 else 2.0, "naive": 1.3}
    gflop = attention_gflop(length, length, heads, dim, causal=causal, backward=backward)
    bench.run(name, candidates, gflop=gflop, dtype=dtype, bars=bars)


if __name__ == "__main__":
    main()
