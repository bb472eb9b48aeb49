"""The ways to compute causal attention that are compared, each over a range of costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ... import patterns
from ...demo.measure import Sample
from ...layout import BlockLayout
from ...mechanisms.attention import attention
from ...mechanisms.hip import hip_attention, hip_select
from ...mechanisms.s2 import s2_attention

BUDGETS = (64, 128, 256, 512, 1024)  # keys a row may choose
STRIDES = (16, 8, 4, 2)
BLOCK = 32  # rows, and keys, of a block everywhere
SINKS = 16
HIP_WINDOW, HIP_KEYS = 64, 2
DENSE = "dense"


@dataclass(frozen=True)
class Mechanism:
    """Attributes:
    family: line of the plots.
    name: in results.
    select: what depends on q and k only; None is fine.
    compute: the result from (q, k, v, selected).
    visible: for the rows of a sample and what was selected, the keys that count, bool ``[H, rows, T]``.
    oracle: the selection knows the true weights, so that its time means nothing and isn't measured.
    in_model: replaces the language model's attention too.
    """

    family: str
    name: str
    select: Callable[[Tensor, Tensor], Any]
    compute: Callable[[Tensor, Tensor, Tensor, Any], Tensor]
    visible: Callable[[Sample, Any], Tensor]
    oracle: bool = False
    in_model: bool = True

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.compute(q, k, v, self.select(q, k))


def _nothing(q: Tensor, k: Tensor) -> None:
    return None


def _causal(sample: Sample) -> Tensor:
    return torch.arange(sample.weights.shape[-1]) <= sample.rows[:, None]


def _all(sample: Sample, _: Any) -> Tensor:
    return _causal(sample).expand(sample.weights.shape)


def dense() -> Mechanism:
    return Mechanism(
        "exact",
        DENSE,
        _nothing,
        lambda q, k, v, _: cast(Tensor, attention(q, k, v, causal=True)),
        _all,
    )


def sdpa() -> Mechanism:
    return Mechanism(
        "exact",
        "PyTorch SDPA",
        _nothing,
        lambda q, k, v, _: scaled_dot_product_attention(q, k, v, is_causal=True),
        _all,
        in_model=False,
    )


def hip(keys: int) -> Mechanism:
    search: dict[str, Any] = {
        "mask_k": keys,
        "block_size_q": BLOCK,
        "block_size_k": HIP_KEYS,
        "sliding_window": HIP_WINDOW,
        "sink_tokens": SINKS,
    }

    def compute(q: Tensor, k: Tensor, v: Tensor, selection: Any) -> Tensor:
        return cast(Tensor, hip_attention(q, k, v, selection=selection, **search))

    return Mechanism(
        "HiP",
        f"HiP mask_k={keys}",
        lambda q, k: hip_select(q, k, **search),
        compute,
        lambda sample, chosen: sample.visible_to_hip(chosen, BLOCK, HIP_KEYS, HIP_WINDOW, SINKS),
    )


def sink_window(keys: int) -> Mechanism:
    """The last ``keys`` keys, the row's own among them, and the first 16."""

    def visible(sample: Sample, _: Any) -> Tensor:
        key = torch.arange(sample.weights.shape[-1])
        near = (key < SINKS) | (key > sample.rows[:, None] - keys)
        return (near & _causal(sample)).expand(sample.weights.shape)

    return Mechanism(
        "window + sinks",
        f"window {keys} + {SINKS}",
        _nothing,
        lambda q, k, v, _: cast(
            Tensor, attention(q, k, v, causal=True, window=(keys - 1, 0), sink_tokens=SINKS)
        ),
        visible,
    )


def s2(stride: int) -> Mechanism:
    options: dict[str, Any] = {"block_size": BLOCK, "local_blocks": 2, "vert_stride": stride}

    def visible(sample: Sample, _: Any) -> Tensor:
        heads, _, length = sample.weights.shape
        layout = patterns.strided(length, length, num_heads=heads, block_q=BLOCK, block_k=BLOCK, **options)
        return _in_blocks(sample, layout)

    return Mechanism(
        "S2",
        f"S2 stride={stride}",
        _nothing,
        lambda q, k, v, _: cast(Tensor, s2_attention(q, k, v, **options)),
        visible,
    )


def top_blocks(keys: int, oracle: bool) -> Mechanism:
    """The row's own block and the best others, chosen for every head and block of rows."""
    score = true_mass if oracle else pooled_scores
    return Mechanism(
        "top blocks, oracle" if oracle else "top blocks, mean-pooled",
        f"top {keys // BLOCK} blocks, {'oracle' if oracle else 'mean-pooled'}",
        lambda q, k: best_blocks(score(q, k), keys // BLOCK, q.shape[2]),
        lambda q, k, v, layout: cast(Tensor, attention(q, k, v, layout=layout, causal=True)),
        _in_blocks,
        oracle,
    )


def true_mass(q: Tensor, k: Tensor) -> Tensor:
    """float32 ``[B, H, M, M]``: attention weight of every block of rows on every block of keys. The weights
    exist for some rows of one head at a time."""
    batch, heads, length, dim = q.shape
    blocks = -(-length // BLOCK)
    mass = torch.zeros(batch, heads, blocks, blocks)
    step = BLOCK * 16
    keys = torch.arange(length)
    for b in range(batch):
        for h in range(heads):
            for start in range(0, length, step):
                end = min(start + step, length)  # these rows see no further
                scores = q[b, h, start:end].float() @ k[b, h, :end].float().T * dim**-0.5
                later = keys[:end] > keys[start:end, None]
                weights = scores.masked_fill_(later, float("-inf")).softmax(-1)
                rows, columns = -(-(end - start) // BLOCK), -(-end // BLOCK)
                weights = pad(weights, (0, columns * BLOCK - end, 0, rows * BLOCK - (end - start)))
                sums = weights.view(rows, BLOCK, columns, BLOCK).sum((1, 3))
                mass[b, h, start // BLOCK : start // BLOCK + rows, :columns] = sums
    return mass


def pooled_scores(q: Tensor, k: Tensor) -> Tensor:
    """float32 ``[B, H, M, M]``: mean query of a block times mean key of a block."""

    def pooled(x: Tensor) -> Tensor:
        length = x.shape[2]
        blocks = -(-length // BLOCK)
        sums = pad(x.float(), (0, 0, 0, blocks * BLOCK - length)).unflatten(2, (blocks, BLOCK)).sum(3)
        sizes = (length - torch.arange(blocks) * BLOCK).clamp(max=BLOCK)
        return sums / sizes[:, None]

    return pooled(q) @ pooled(k).transpose(-1, -2)


def best_blocks(score: Tensor, count: int, length: int) -> BlockLayout:
    """For every block of rows its own block of keys and the best ``count - 1`` before it."""
    blocks = score.shape[-1]
    place = torch.arange(blocks)
    later = place > place[:, None]
    score = score.masked_fill(later, float("-inf"))
    score = score.masked_fill(place == place[:, None], float("inf"))
    count = min(count, blocks)
    chosen = score.topk(count).indices
    # Row i has i + 1 blocks at most; what is beyond goes to the end of the list, where it is ignored.
    index = torch.where(chosen > place[:, None], blocks, chosen).sort(-1).values.clamp(max=blocks - 1)
    used = (place + 1).clamp(max=count).expand(score.shape[:3])
    return BlockLayout(
        used.to(torch.int32).contiguous(),
        index.to(torch.int32),
        block_q=BLOCK,
        block_k=BLOCK,
        q_len=length,
        kv_len=length,
        validate=False,
    )


def _in_blocks(sample: Sample, layout: BlockLayout) -> Tensor:
    state = layout.to_block_state()[0, :, sample.rows // layout.block_q]
    kept = (state != -2).repeat_interleave(layout.block_k, -1)[..., : layout.kv_len]
    return (kept & _causal(sample)).expand(sample.weights.shape)


def mechanisms(length: int) -> list[Mechanism]:
    """All that cost less than exact attention on ``length`` tokens, after the exact ones."""
    budgets = [b for b in BUDGETS if b <= length // 2]
    found = [dense(), sdpa()]
    for make in (hip, sink_window):
        found += [make(budget) for budget in budgets]
    for oracle in (True, False):
        found += [top_blocks(budget, oracle) for budget in budgets]
    return found + [s2(stride) for stride in STRIDES]
