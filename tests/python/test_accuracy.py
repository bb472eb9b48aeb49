"""The accuracy benchmark: what it says a mechanism keeps is what the mechanism computes, its model trains and
goes on after an interruption, and the whole command on a tiny model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
import time

import pytest
import torch

from attn import reference
from attn.bench.accuracy import command, measure, schema
from attn.bench.accuracy import corpus as texts
from attn.bench.accuracy import mechanisms as ways
from attn.bench.accuracy.model import LanguageModel, Shape
from attn.bench.accuracy.train import Recipe, checkpoint_path, train
from attn.bench.schema import validate
from attn.demo.encoder import DemoError
from attn.demo.measure import Sample

needs_tokenizers = pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="the tokenizer isn't installed (extra `demo`)"
)
needs_model = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in command.NEEDED),
    reason="the encoder isn't installed (extra `demo`); `make test` installs it",
)
LENGTH = 333  # no multiple of a block


def inputs(length=LENGTH, heads=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, heads, length, 16, generator=generator) for _ in range(3))


@pytest.mark.parametrize("m", ways.mechanisms(LENGTH), ids=lambda m: m.name)
def test_visible_is_what_is_computed(m):
    """Softmax over exactly the keys that the benchmark counts gives the mechanism's result."""
    q, k, v = inputs()
    sample = Sample(q, k, v, LENGTH)
    visible = m.visible(sample, m.select(q, k))
    rows = sample.rows
    wanted = reference.masked_attention(q.double()[:, :, rows], k.double(), v.double(), visible[None])[0]
    torch.testing.assert_close(m.attend(q, k, v)[:, :, rows].double(), wanted, rtol=1e-4, atol=1e-5)
    (row,) = [r for r in measure.tensors([(q, k, v)], [ways.dense(), m], 1) if r["mechanism"] == m.name][:1]
    exact = m.family == "exact"
    assert (row["error"] < 1e-5) == exact
    assert (row["kept_area"] == pytest.approx(1)) == exact
    assert row["kept_mass"] <= row["best_mass"] + 1e-6 <= 1 + 1e-5


def test_oracle_blocks_hold_the_most_weight():
    q, k, _ = inputs(160, 2)
    weights = torch.softmax(
        (q @ k.mT / 4).masked_fill(torch.ones(160, 160).triu(1).bool(), float("-inf")), -1
    )
    blocks = weights.unflatten(3, (5, 32)).unflatten(2, (5, 32)).sum((3, 5))
    torch.testing.assert_close(ways.true_mass(q, k), blocks)
    kept = ways.best_blocks(blocks, 3, 160).to_block_state() != -2
    for head in range(2):
        for i in range(5):
            others = blocks[0, head, i, :i].topk(min(2, i)).indices.tolist()
            assert kept[0, head, i].nonzero()[:, 0].tolist() == sorted([*others, i])


def test_pooled_scores_of_a_short_last_block():
    q, k, _ = inputs(40, 1)
    score = ways.pooled_scores(q, k)
    torch.testing.assert_close(score[0, 0, 1, 0], q[0, 0, 32:].mean(0) @ k[0, 0, :32].mean(0))


@pytest.fixture(scope="module")
def corpus():
    if importlib.util.find_spec("tokenizers") is None:
        pytest.skip("the tokenizer isn't installed (extra `demo`)")
    return texts.build(400, 300_000)


STEPS = 120


def a_second_a_step(patch):
    """The clock of the training counts steps, so that a busy machine trains the same model."""
    clock = iter(range(10**6))
    patch.setattr(time, "perf_counter", lambda: float(next(clock)))


def recipe(corpus, seconds=STEPS, **changes):
    return Recipe(
        Shape(corpus.vocabulary, 32, 2, 2), seconds, length=256, tokens_per_step=512, pins=48, **changes
    )


def test_lines_to_recall(corpus):
    generator = torch.Generator().manual_seed(1)
    tokens, places, depth = texts.needle_context(corpus, 512, 4, generator)
    assert tokens.shape == (512,)
    assert sorted(depth.tolist()) == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.01)
    for i, place in enumerate(places):
        line = tokens[place[0] - corpus.line + 1 + texts.DIGITS : place[-1] + 2]
        found = tokens.unfold(0, corpus.line, 1).eq(line).all(-1).nonzero()[:, 0]
        assert len(found) == 2  # once where it was put, once where it is asked for
        assert float(found[0]) / 512 == pytest.approx(float(depth[i]), abs=0.2)
        assert torch.isin(tokens[place], corpus.digits).all()


def test_training_sequences(corpus):
    tokens, weights = texts.training_sequence(corpus, 512, 5, torch.Generator().manual_seed(2))
    assert tokens.shape == weights.shape == (513,)
    assert int((weights == 0).sum()) == int((weights == texts.ANSWER).sum()) == 5 * texts.DIGITS
    for weight in (0, texts.ANSWER):
        assert torch.isin(tokens[weights == weight], corpus.digits).all()
    with pytest.raises(DemoError, match="choose fewer --tokens"):
        texts.excerpt(corpus.held, 10**9, torch.Generator())


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        a_second_a_step(patch)
        return train(recipe(corpus), corpus, path), path


def test_it_learns(corpus, trained):
    found, _ = trained
    assert found.steps == found.seconds == STEPS
    assert sum(found.losses[-5:]) < 0.8 * sum(found.losses[:5])


def test_a_trained_model_is_not_trained_again(corpus, trained):
    found, path = trained
    again = train(recipe(corpus), corpus, path)
    assert again.losses == found.losses
    for a, b in zip(again.model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_killed_training_goes_on(corpus, tmp_path, monkeypatch):
    """Killed after three steps and taken up again, the fourth step is that of an uninterrupted training."""
    from attn.bench.accuracy import train as module

    a_second_a_step(monkeypatch)
    monkeypatch.setattr(module, "SAVE_EVERY", 0.5)
    whole = train(recipe(corpus, 6), corpus, tmp_path / "whole.pt")
    step = module._step

    def killed(model, optimizers, recipe, corpus, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(model, optimizers, recipe, corpus, number)

    monkeypatch.setattr(module, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(corpus, 6), corpus, tmp_path / "part.pt")
    monkeypatch.setattr(module, "_step", step)
    resumed = train(recipe(corpus, 6), corpus, tmp_path / "part.pt")
    assert resumed.losses == whole.losses
    assert resumed.steps == 6
    assert not list(tmp_path.glob("*.part"))


def test_other_recipes_have_other_files(corpus, tmp_path):
    changed = [recipe(corpus), recipe(corpus, seed=1), recipe(corpus, 3.0)]
    changed.append(dataclasses.replace(changed[0], shape=Shape(corpus.vocabulary, 64, 2, 2)))
    assert len({checkpoint_path(tmp_path, r, corpus) for r in changed}) == 4


def test_full_cost_changes_nothing(corpus, trained):
    """Mechanisms that keep every key have the perplexity and the recall of exact attention; others don't."""
    model = trained[0].model
    exact = measure.loss(model, corpus, 256, 1024, ways.dense().attend)
    assert exact["perplexity"] == pytest.approx(math.exp(exact["loss"]))
    assert exact["tokens"] == 1024
    for m in (ways.hip(256), ways.sink_window(256), ways.top_blocks(256, True), ways.s2(1)):
        assert measure.loss(model, corpus, 256, 1024, m.attend)["loss"] == pytest.approx(
            exact["loss"], abs=1e-5
        )
    for m in (ways.hip(16), ways.sink_window(32), ways.top_blocks(32, False), ways.s2(16)):
        assert abs(measure.loss(model, corpus, 256, 1024, m.attend)["loss"] - exact["loss"]) > 1e-4
    full = measure.recall(model, corpus, 256, 2, 4, 0, ways.dense().attend)
    assert measure.recall(model, corpus, 256, 2, 4, 0, ways.hip(256).attend) == full
    assert full["lines"] == 8
    assert len(full["recall_by_depth"]) == measure.DEPTHS


def test_recall_is_of_what_was_seen(corpus):
    """A model that copies recalls all; one that is blind to the lines recalls none."""

    class Copies(LanguageModel):
        def forward(self, tokens, reach):
            # What followed the last three tokens before: the answer, if attention may look that far.
            logits = torch.zeros(1, tokens.shape[1], self.shape.vocabulary)
            row = tokens[0].tolist()
            for i in range(3, len(row)):
                for j in range(i - 1, max(3, i - reach), -1):
                    if row[j - 2 : j + 1] == row[i - 2 : i + 1]:
                        logits[0, i, row[j + 1]] = 1
                        break
            return logits

    model = Copies(Shape(corpus.vocabulary, 16, 1, 1))
    for reach, wanted in ((512, 1.0), (20, 0.0)):
        found = measure.recall(model, corpus, 512, 1, 4, 3, reach)
        assert found["recall"] == wanted
        assert found["recall_by_depth"] == [wanted] * 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy")
    arguments = ["--quick", "--train-seconds", "1.5", "--threads", "1"]
    command_line = [sys.executable, "-m", "attn", "bench", "accuracy", *arguments]
    command_line += ["--out", str(folder), "--json", str(folder / "own.json"), "--cache", str(folder / "c")]

    def run():
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "own.json").read_text())

    return folder, run, run()


@needs_model
def test_the_command(finished):
    folder, _, record = finished
    validate(record, schema.SCHEMA)
    minilm, model = record["cases"]
    assert (minilm["inputs"], model["inputs"]) == ("MiniLM", "language model")
    assert all("perplexity" not in r for r in minilm["results"])
    for case in record["cases"]:
        rows = {r["mechanism"]: r for r in case["results"]}
        assert rows["dense"]["error"] < 1e-5
        assert rows["dense"]["speedup"] == 1
        assert rows["HiP mask_k=64"]["error"] > rows["HiP mask_k=128"]["error"] > 1e-4
        assert rows["top 2 blocks, oracle"]["kept_mass"] > rows["top 2 blocks, mean-pooled"]["kept_mass"]
    rows = {r["mechanism"]: r for r in model["results"]}
    assert rows["dense"]["perplexity_change"] == 0
    assert all("recall" in r for name, r in rows.items() if name != "PyTorch SDPA")
    assert "| HiP mask_k=64 |" in (folder / "results.md").read_text()
    pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `viz`)")
    for name in ("error_over_cost", "error_over_time", "perplexity_over_cost", "recall_over_cost"):
        assert (folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@needs_model
def test_the_command_goes_on(finished):
    """Killed while it wrote a record: only that one is measured again."""
    folder, run, record = finished
    cases = folder / "cases.jsonl"
    lines = cases.read_text().splitlines(keepends=True)
    cases.write_text("".join(lines[:-1]) + lines[-1][:20])
    again = run()
    assert again["cases"] == record["cases"]
    assert again["model"] == record["model"]
    assert len(cases.read_text().splitlines()) == len(lines)


@needs_model
def test_the_schema_refuses(finished):
    text = json.dumps(finished[2])
    for change, told in (
        (lambda r: r.pop("model"), "must have 'model'"),
        (lambda r: r["cases"][0].update(inputs="noise"), "inputs must be one of"),
        (lambda r: r["cases"][1]["results"][0].pop("kept_area"), "must have 'kept_area'"),
        (lambda r: r["cases"][1]["results"][0].update(recall="all"), "recall must be of type number"),
    ):
        record = json.loads(text)
        change(record)
        with pytest.raises(ValueError, match=told):
            validate(record, schema.SCHEMA)


@needs_model
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tokens", "64"], "--tokens must be 256"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--train-seconds", "-1"], "--train-seconds must be greater than 0"),
    ],
)
def test_wrong_arguments(capsys, arguments, told):
    assert command.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["--quick"]) == 2
    assert "pip install 'attn[demo]'" in capsys.readouterr().err
