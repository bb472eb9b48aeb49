"""Training the small language model for a given time, in steps that a killed run takes up again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .corpus import Corpus, training_sequence
from .model import LanguageModel, Shape

SAVE_EVERY = 20.0  # seconds


@dataclass(frozen=True)
class Recipe:
    """What determines the model, besides how many steps the machine makes in that time."""

    shape: Shape
    seconds: float
    seed: int = 0
    length: int = 2048
    tokens_per_step: int = 4096
    pins: int = 24  # per 2048 tokens
    corpus_bytes: int = 12_000_000
    version: int = 1  # to raise when the model or the training changes: checkpoints of others don't fit


@dataclass
class Trained:
    model: LanguageModel
    steps: int
    seconds: float
    losses: list[float]  # of every step, weighted as trained


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "attn"


def checkpoint_path(folder: Path, recipe: Recipe, corpus: Corpus) -> Path:
    """One file for each recipe and text: a changed one never continues from another's weights."""
    told = hashlib.sha256(repr(sorted(asdict(recipe).items())).encode())
    told.update(corpus.train.numpy().tobytes())
    return folder / f"accuracy-{told.hexdigest()[:16]}.pt"


def train(
    recipe: Recipe,
    corpus: Corpus,
    path: Path,
    progress: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Trains until ``recipe.seconds`` have been spent in all runs together: this one and those that ``path``
    holds.

    Every step draws its data from (seed, step), so a resumed run sees what an uninterrupted one would have.
    The learning rate falls with the share of the time that is spent.
    """
    seconds = recipe.seconds
    torch.manual_seed(recipe.seed)
    model = LanguageModel(recipe.shape)
    optimizers = _optimizers(model)
    losses: list[float] = []
    spent = 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        losses, spent = saved["losses"], saved["seconds"]
    rates = [[group["lr"] for group in o.param_groups] for o in _optimizers(model)]
    start = last_saved = time.perf_counter()
    before = spent
    while spent < seconds:
        share = spent / seconds
        progress(share)
        # Warm-up over 20 steps, flat for the first half, then a straight line to zero.
        factor = min(1.0, (len(losses) + 1) / 20, 2 * (1 - share))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group, lr in zip(optimizer.param_groups, rate, strict=True):
                group["lr"] = lr * factor
        losses.append(_step(model, optimizers, recipe, corpus, len(losses)))
        now = time.perf_counter()
        spent = before + now - start
        if now - last_saved > SAVE_EVERY or spent >= seconds:
            _save(path, model, optimizers, losses, spent)
            last_saved = now
    return Trained(model.eval(), len(losses), spent, losses)


def _optimizers(model: LanguageModel) -> list[torch.optim.Optimizer]:
    matrices = [m.weight for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _step(
    model: LanguageModel,
    optimizers: list[torch.optim.Optimizer],
    recipe: Recipe,
    corpus: Corpus,
    step: int,
) -> float:
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    length = recipe.length * (2 if step % 4 == 3 else 1)  # some longer texts
    pins = recipe.pins * length // 2048
    rows = [
        training_sequence(corpus, length, pins, generator) for _ in range(recipe.tokens_per_step // length)
    ]
    tokens = torch.stack([row for row, _ in rows])
    weights = torch.stack([weight for _, weight in rows])[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    each = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
    loss = (each * weights.flatten()).sum() / weights.sum()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _save(
    path: Path,
    model: LanguageModel,
    optimizers: list[torch.optim.Optimizer],
    losses: list[float],
    seconds: float,
) -> None:
    """Written beside and renamed, so that a run that is killed here leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "losses": losses,
        "seconds": seconds,
    }
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save(state, part)
    part.replace(path)
