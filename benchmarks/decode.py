"""Decoding (grouped heads, one new token or some) against the read bandwidth of this machine, SDPA and
the plain matmul form; paged against contiguous caches.

    python benchmarks/decode.py [--json FILE]
"""

from __future__ import annotations

import torch
from common import Bench, arguments, keep_memory

import attn

sdpa = torch.nn.functional.scaled_dot_product_attention


def main() -> None:
    parser = arguments(__doc__.split("\n\n")[0])
    parser.add_argument("--keys", type=int, default=32768)
    parser.add_argument("--tokens", type=int, default=1, help="new tokens of a sequence (default 1)")
    args = parser.parse_args()
    keep_memory()  # page faults of results are nobody's attention
    bench = Bench("decode", args)
    batch, heads, heads_kv, keys = 4, 32, 8, 1024 if args.quick else args.keys
    lengths = torch.full((batch,), keys, dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        for dim in (64, 128):
            tokens = args.tokens
            q = torch.randn(batch, heads, tokens, dim, dtype=dtype)
            # The last of several new tokens sees all keys, the one before it all but one.
            sees = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens) if tokens > 1 else None
            k, v = (torch.randn(batch, heads_kv, keys, dim, dtype=dtype) for _ in range(2))
            gbytes = 2 * k.numel() * k.element_size() * 1e-9
            name = f"B={batch} H={heads}/{heads_kv} keys={keys} D={dim} {str(dtype)[6:]}"
            if tokens > 1:
                name = f"Tq={tokens} {name}"

            def folded(q=q, k=k, v=v, dim=dim, sees=sees, tokens=tokens):
                rows = q.view(batch, heads_kv, heads // heads_kv * tokens, dim) * dim**-0.5
                scores = rows @ k.transpose(-1, -2)
                if sees is not None:
                    scores.view(batch, heads, tokens, keys).masked_fill_(~sees, -torch.inf)
                return torch.softmax(scores, -1) @ v

            page = 64
            order = torch.randperm(batch * keys // page)
            table = order.view(batch, -1).to(torch.int32)
            pages_k, pages_v = (
                torch.empty(batch * keys // page, heads_kv, page, dim, dtype=dtype) for _ in range(2)
            )
            for cache, pages in ((k, pages_k), (v, pages_v)):
                pages[order] = (
                    cache.view(batch, heads_kv, -1, page, dim)
                    .transpose(1, 2)
                    .reshape(-1, heads_kv, page, dim)
                )

            def read(k=k, v=v):
                for cache in (k, v):
                    bench.machine.read(cache)

            # The pages as a decoder meets them: sequence by sequence, head by head, keys and values in turn.
            size = page * dim * k.element_size()
            heads_at = torch.arange(heads_kv).view(1, -1, 1) * size
            pieces = torch.stack(
                [
                    x.data_ptr() + table.long().unsqueeze(1) * heads_kv * size + heads_at
                    for x in (pages_k, pages_v)
                ],
                dim=-1,
            ).contiguous()

            row = bench.run(
                name,
                {
                    "reading the cache": read,
                    "attn": lambda q=q, k=k, v=v: attn.decode_attention(q, k, v, seqlens=lengths),
                    "paged": lambda q=q, k=pages_k, v=pages_v, t=table: attn.decode_attention(
                        q, k, v, seqlens=lengths, block_table=t
                    ),
                    "folded matmul": folded,
                    "sdpa": lambda q=q, k=k, v=v, sees=sees: sdpa(q, k, v, sees, enable_gqa=True),
                },
                gbytes=gbytes,
                # Our share of the bandwidth, and of the time with pages, as ratios of times in one round.
                # With several tokens multiplications take over.
                bars={"reading the cache": 0.8 if tokens == 1 else 0, "sdpa": 1.0, "folded matmul": 1.0},
            )
            if row:
                in_order = (k.data_ptr(), v.data_ptr())
                straight = torch.cat(
                    [at + torch.arange(k.numel() * k.element_size() // size) * size for at in in_order]
                )
                row["reading"] = {
                    "the caches": 1e3
                    * bench.machine.seconds(lambda: bench.machine.read_pieces(straight, size)),
                    "the pages": 1e3 * bench.machine.seconds(lambda: bench.machine.read_pieces(pieces, size)),
                }
                print("    ms of reading alone:", {k: round(ms, 3) for k, ms in row["reading"].items()})
    bench.finish()


if __name__ == "__main__":
    main()
