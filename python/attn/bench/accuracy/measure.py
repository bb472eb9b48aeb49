"""What a mechanism loses: on the tensors of one attention, in a model's perplexity, in what it recalls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...demo.measure import Sample
from ..timing import calm, summary
from .corpus import Corpus, needle_context
from .mechanisms import DENSE, Mechanism
from .model import Attend, LanguageModel, dense

Inputs = tuple[Tensor, Tensor, Tensor]
SAMPLED_ROWS = 128
DEPTHS = 4  # parts of the text that recall is reported for


@torch.no_grad()
def tensors(layers: list[Inputs], taking_part: list[Mechanism], rounds: int) -> list[dict[str, Any]]:
    """Error and kept attention of every mechanism on the q, k and v of each layer, averaged over the layers;
    time of one layer, all mechanisms in turn."""
    found: dict[str, list[tuple[float, float, float, float]]] = {m.name: [] for m in taking_part}
    calls: dict[str, Callable[[], object]] = {}
    for q, k, v in layers:
        sample = Sample(q, k, v, min(SAMPLED_ROWS, q.shape[2]))
        area = float((sample.rows + 1).sum()) * q.shape[1]
        for m in taking_part:
            selected = m.select(q, k)
            error = sample.error(m.compute(q, k, v, selected))
            visible = m.visible(sample, selected)
            kept = sample.kept_mass(visible)
            best = max(kept, sample.best_mass(visible))  # which ranks no more than Sample.MOST_KEYS keys
            found[m.name].append((error, float(visible.sum()) / area, kept, best))
            calls[m.name] = _timed(m, (q, k, v), selected)
    for call in calls.values():
        call()
    times = calm(calls, rounds)
    rows = []
    for m in taking_part:
        told = {"mechanism": m.name, "family": m.family, "selection_timed": not m.oracle}
        means = (statistics.fmean(x) for x in zip(*found[m.name], strict=True))
        measured = dict(zip(("error", "kept_area", "kept_mass", "best_mass"), means, strict=True))
        rows.append({**told, **measured, **summary(times[m.name], times[DENSE])})
    return rows


def _timed(m: Mechanism, inputs: Inputs, selected: Any) -> Callable[[], object]:
    if m.oracle:
        return lambda: m.compute(*inputs, selected)
    return lambda: m.attend(*inputs)


@torch.no_grad()
def model_inputs(model: LanguageModel, tokens: Tensor) -> list[Inputs]:
    """q, k and v ``[1, H, T, D]`` of every layer, exact attention in all of them."""
    layers: list[Inputs] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layers.append((q.contiguous(), k.contiguous(), v.contiguous()))
        return dense(q, k, v)

    model(tokens[None], attend)
    return layers


@torch.no_grad()
def loss(model: LanguageModel, corpus: Corpus, length: int, tokens: int, attend: Attend) -> dict[str, Any]:
    """Mean cross-entropy, in nats a token, on the first ``tokens`` held-out tokens in pieces of ``length``;
    perplexity is its exponential."""
    count = max(1, min(tokens, len(corpus.held) - 1) // length)
    total = 0.0
    for i in range(count):
        piece = corpus.held[i * length : (i + 1) * length + 1]
        logits = model(piece[None, :-1], attend)[0]
        total += cross_entropy(logits.double(), piece[1:]).item() * length
    each = total / (count * length)
    return {"loss": each, "perplexity": math.exp(each), "tokens": count * length}


@torch.no_grad()
def recall(
    model: LanguageModel,
    corpus: Corpus,
    length: int,
    contexts: int,
    pins: int,
    seed: int,
    attend: Attend,
) -> dict[str, Any]:
    """Share of lines whose digits are all predicted at the end of the text, and for each part of the text
    in which they stood, from its beginning to its end."""
    hits: list[tuple[float, bool]] = []
    for i in range(contexts):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        tokens, places, depth = needle_context(corpus, length, pins, generator)
        predicted = model(tokens[None], attend)[0].argmax(-1)
        right = (predicted[places - 1] == tokens[places]).all(-1)
        hits += zip(depth.tolist(), right.tolist(), strict=True)
    parts: list[list[bool]] = [[] for _ in range(DEPTHS)]
    for where, right in hits:
        parts[min(DEPTHS - 1, int(where * DEPTHS))].append(right)
    return {
        "recall": statistics.fmean(right for _, right in hits),
        "recall_by_depth": [statistics.fmean(part) if part else None for part in parts],
        "lines": len(hits),
    }
