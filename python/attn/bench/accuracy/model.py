"""A small causal language model whose attention is a function that can be exchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm

from ...mechanisms.attention import attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
REACH = 4  # tokens that q, k and v are made of


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    dim: int = 128
    heads: int = 4
    layers: int = 4


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return cast(Tensor, attention(q, k, v, causal=True))


class Block(nn.Module):
    """Attention and a squared-ReLU network, both on a normalised input and added to it.

    q, k and v each read a causal convolution of the input over four tokens. Blocks are of two kinds. One
    turns q and k (RoPE), and its convolutions begin as the token itself. The other recalls: it knows no
    positions, so that it still works on texts longer than those it was trained on, and begins with queries
    that are the sum of the last three tokens, keys that are the sum of the three tokens *before*, and the
    same projection for both. So it attends to what followed the same three tokens. A small model finds that
    by itself only in far longer training than this benchmark has (Olsson et al. 2022, arXiv 2209.11895;
    shifted keys: Xu et al. 2024, arXiv 2411.19574).
    """

    def __init__(self, shape: Shape, recalls: bool) -> None:
        super().__init__()
        dim, self.heads, self.recalls = shape.dim, shape.heads, recalls
        self.near = nn.Parameter(torch.zeros(3, REACH, dim))  # of q, k, v: weight of the token n back
        self.gain = nn.Parameter(torch.full((shape.heads, 1, 1), 2.5))  # q and k are normalised
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)
        with torch.no_grad():
            self.near[:, 0] = 1.0
            if recalls:
                self.near[0, :3], self.near[1, 0], self.near[1, 1:] = 1.0, 0.0, 1.0
                self.key.weight.copy_(self.query.weight)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        batch, length, dim = x.shape
        h = rms_norm(x, (dim,))
        padded = pad(h, (0, 0, REACH - 1, 0))
        back = [padded[:, REACH - 1 - n : REACH - 1 - n + length] for n in range(REACH)]
        q, k, v = (
            project(sum(weight * h for weight, h in zip(near, back, strict=True)))
            .view(batch, length, self.heads, -1)
            .transpose(1, 2)
            for near, project in zip(self.near, (self.query, self.key, self.value), strict=True)
        )
        q, k = rms_norm(q, q.shape[-1:]), rms_norm(k, k.shape[-1:])
        if not self.recalls:
            q, k = _turned(q, *turn), _turned(k, *turn)
        mixed = attend((q * self.gain).to(v.dtype), k.to(v.dtype), v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        return x + self.down(self.up(rms_norm(x, (dim,))).relu().square())


class LanguageModel(nn.Module):
    """Tokens ``[B, T]`` to logits ``[B, T, vocabulary]``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocabulary, shape.dim)
        self.blocks = nn.ModuleList(Block(shape, recalls=i % 2 == 1) for i in range(shape.layers))
        self.head = nn.Linear(shape.dim, shape.vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=1.0)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor, attend: Attend = dense) -> Tensor:
        turn = _angles(tokens.shape[1], self.shape.dim // self.shape.heads)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, turn, attend)
        return cast(Tensor, self.head(rms_norm(x, (self.shape.dim,))))


def _angles(length: int, dim: int) -> tuple[Tensor, Tensor]:
    frequency = 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    angle = torch.arange(length)[:, None] * frequency
    return angle.cos(), angle.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)
