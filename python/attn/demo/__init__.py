"""`python -m attn demo`: a needle in a long context, looked for by several mechanisms on this CPU."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import attn

HEADS, KV_HEADS, DIM = 8, 2, 64


def haystack(tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, int]:
    """q ``[1, H, T, D]``, k and v ``[1, Hkv, T, D]``, and the key that the last rows ask for."""
    q, k, v = (
        torch.randn(1, heads, tokens, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    # Neighbouring keys resemble each other, as in a model; HiP's tree search relies on it.
    k = F.avg_pool1d(k.flatten(0, 1).mT, 65, stride=1, padding=32).mT.unflatten(0, (1, KV_HEADS)) * 8
    needle = tokens // 3
    q[:, :, -64:] = 4 * k[:, :, needle].repeat_interleave(HEADS // KV_HEADS, 1)[:, :, None]
    return q, k, v, needle


def milliseconds(function: Callable[..., Any], *arguments: Tensor) -> float:
    """Best of two runs."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def train_step(method: Callable[..., Any], *leaves: Tensor) -> None:
    method(*leaves).sum().backward()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m attn demo", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the context (default 4096)")
    tokens = max(1024, parser.parse_args(arguments).tokens)
    torch.manual_seed(0)
    q, k, v, needle = haystack(tokens, torch.Generator().manual_seed(0))
    sdpa = functools.partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    exact = sdpa(q, k, v)

    print(
        f"{tokens} tokens, {HEADS} heads over {KV_HEADS} key heads, float32, {torch.get_num_threads()} "
        f"threads, instruction set {attn._C.cpu_isa()}. The last 64 rows ask for key {needle}."
    )
    windowed = functools.partial(attn.attention, causal=True, window=(511, 0), sink_tokens=16)
    methods: dict[str, Callable[..., Any]] = {
        "torch SDPA": sdpa,
        "attn.attention": functools.partial(attn.attention, causal=True),
        "  window 512, 16 sinks": windowed,
        "attn.s2_attention": attn.s2_attention,
        "attn.hip_attention": attn.hip_attention,
    }
    print(f"\n{'':<24}{'forward':>12}{'+ backward':>12}{'error in the last rows':>26}")
    for name, method in methods.items():
        forward = milliseconds(method, q, k, v)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        both = milliseconds(functools.partial(train_step, method), *leaves)
        error = (method(q, k, v) - exact)[:, :, -64:].norm() / exact[:, :, -64:].norm()
        print(f"{name:<24}{forward:>9.1f} ms{both:>9.1f} ms{error:>26.1e}")

    cut = tokens // 2
    last = q[:, :, -64:]
    parts = [
        attn.attention(last, k[:, :, :cut], v[:, :, :cut], return_lse=True),
        attn.attention(last, k[:, :, cut:], v[:, :, cut:], causal=True, return_lse=True),
    ]
    merged, _ = attn.merge_states([out for out, _ in parts], [lse for _, lse in parts])
    error = (merged - exact[:, :, -64:]).abs().max()
    print(f"\nTwo halves of the context apart, then attn.merge_states: largest difference {error:.1e}")
    return 0
