"""The benchmark: its masks and checks, its records, resuming, and the whole command on one small case."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import time

import pytest
import torch

from attn.bench import command, masks
from attn.bench.kernels import DECODE, KERNELS
from attn.bench.measure import Checks
from attn.bench.mechanisms import MECHANISMS
from attn.bench.plan import plan
from attn.bench.schema import validate
from attn.bench.store import OtherRun, Store
from attn.bench.timing import calm, summary
from attn.bench.verify import disagreement

BY_NAME = {kernel.name: kernel for kernel in KERNELS}


@pytest.mark.parametrize("name", masks.NAMES)
def test_layout_is_the_rule(name):
    for length in (320, 777):
        mask = masks.build(name, length)
        assert torch.equal(mask.layout().to_token_mask()[0, 0], mask.table())
        assert mask.area() == int(mask.table().sum()) > 0


def test_there_are_14_masks_in_the_plan():
    assert len(masks.NAMES) == 14
    full = plan()
    assert len({case.name for case in full}) == len(full)
    assert {case.mask for case in full} >= set(masks.NAMES)
    assert {case.mask for case in plan(quick=True)} >= set(masks.NAMES)
    assert {(case.dtype, case.stage) for case in full} == {
        (dtype, stage) for dtype in ("float32", "bfloat16") for stage in ("forward", "backward", "decode")
    }
    assert all("backward causal T" in case.name for case in plan(only=("backward causal T",)))
    some = plan(only=("decode * bfloat16", "forward causal T=1024"))
    assert {case.name[:8] for case in some} == {"decode f", "forward "}
    assert len(some) == 5 + 2


@pytest.mark.parametrize("name", ["causal", "full_document", "shared_question", "variable_block_sparse_0.2"])
@pytest.mark.parametrize("stage", ["forward", "backward"])
def test_kernels_agree(name, stage):
    mask = masks.build(name, 320)
    taking_part = [k for k in KERNELS if not k.compiles and k.cannot(mask, stage, 2) is None]
    assert len(taking_part) >= 3
    for kernel in taking_part:
        assert disagreement(kernel, name, "float32", stage) is None, kernel.name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mechanisms_agree_in_half_precision(dtype):
    for kernel in MECHANISMS:
        assert disagreement(kernel, "causal", dtype, "backward") is None, kernel.name


def test_a_wrong_mechanism_is_caught():
    """Its mask is right, its result isn't."""
    flow, linear = MECHANISMS[-2:]
    wrong = dataclasses.replace(flow, make=linear.make)
    assert "the result is off by" in disagreement(wrong, "full", "float32", "forward")


def test_decode_kernels_agree():
    for kernel in DECODE:
        assert disagreement(kernel, "full", "bfloat16", "decode") is None, kernel.name


def test_a_wrong_peer_is_caught():
    off_by_one = lambda mask: BY_NAME["naive"].make(  # noqa: E731
        dataclasses.replace(mask, plain=None, rule=lambda i, j: j <= i + 1)
    )
    wrong = dataclasses.replace(BY_NAME["naive"], name="wrong", make=off_by_one)
    found = disagreement(wrong, "causal", "float32", "forward")
    assert "638 too many, 0 missing" in found  # one a row but the last, two heads
    (case,) = plan(only=("forward causal T=1024 float32",))
    assert "mask differs" in Checks()(wrong, case)


def test_a_wrong_gradient_is_caught():
    def make(mask):
        call = BY_NAME["naive"].make(mask)
        return lambda q, k, v: call(q, k * 0.5 + k.detach() * 0.5, v)

    wrong = dataclasses.replace(BY_NAME["naive"], make=make)
    assert disagreement(wrong, "causal", "float32", "forward") is None
    assert disagreement(wrong, "causal", "float32", "backward").startswith("gradient of k")


def test_flex_attention_is_compiled_for_every_mask(monkeypatch):
    """Not for the first eight only."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for name in masks.NAMES[:10]:
            call = BY_NAME["FlexAttention"].make(masks.build(name, 320))
            call(*(torch.randn(1, 1, 320, 16) for _ in range(3)))


def test_a_failing_peer_is_a_result():
    def make(mask):
        raise RuntimeError("no such kernel")

    (case,) = plan(only=("forward causal T=1024 float32",))
    failing = dataclasses.replace(BY_NAME["naive"], make=make)
    assert Checks()(failing, case) == "failed: RuntimeError: no such kernel"


def test_summary():
    row = summary([1.0, 2.0, 4.0], [2.0, 2.0, 2.0])
    assert row == {"ms": 2000.0, "ms_min": 1000.0, "ms_max": 4000.0, "speedup": 1.0}


def test_restless_rounds_are_repeated(monkeypatch):
    rounds = [[1.0, 1.0, 2.0], [1.0, 1.1, 1.2], [5.0, 5.0, 5.0]]
    monkeypatch.setattr("attn.bench.timing.interleaved", lambda calls, n: {"a": rounds.pop(0)})
    assert calm({"a": int}, 3) == {"a": [1.0, 1.1, 1.2]}
    assert calm({"a": int}, 3) == {"a": [5.0, 5.0, 5.0]}


def test_interrupted_run_goes_on(tmp_path):
    identity = {"threads": 2}
    store = Store(tmp_path, identity)
    store.add({"case": "a", "ms": 1})
    store.add({"case": "b", "ms": 2})
    with store.path.open("a") as file:
        file.write('{"case": "c", "m')  # killed while it wrote
    again = Store(tmp_path, identity)
    assert list(again.cases) == ["a", "b"]
    again.add({"case": "c", "ms": 3})
    assert Store(tmp_path, identity).cases["c"] == {"case": "c", "ms": 3}
    with pytest.raises(OtherRun, match="threads 2, now 1"):
        Store(tmp_path, {"threads": 1})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Four cases, run by the command in its own process (it changes malloc's settings), which is killed after
    two of them and started again."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["--only", "forward causal", "--dtype", "bfloat16", "--lengths", "256", "--rounds", "1"]
    command_line = [sys.executable, "-m", "attn", "bench", *arguments, "--quick", "--threads", "1"]
    command_line += ["--out", str(folder)]
    cases = folder / "cases.jsonl"
    first = subprocess.Popen(command_line, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (cases.exists() and cases.read_bytes().count(b"\n") > 2):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    first.kill()
    first.wait()
    before = cases.read_bytes()
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, before, done.stderr


def test_killed_and_started_again(finished):
    """What was finished before the kill is in the results as it was measured, and wasn't measured again."""
    folder, before, told = finished
    whole = [json.loads(line) for line in before.splitlines(keepends=True)[1:] if line.endswith(b"\n")]
    record = json.loads((folder / "results.json").read_text())
    assert 2 <= len(whole) < len(record["cases"]) == 4
    assert f"{len(whole)} of 4 cases are in" in told
    kept = {case["case"]: case for case in record["cases"]}
    for case in whole:
        assert kept[case["case"]] == case
        assert f"] {case['case']}\n" not in told
    assert (folder / "cases.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])


def test_the_command(finished):
    folder, _, _ = finished
    record = json.loads((folder / "results.json").read_text())
    validate(record)
    case = record["cases"][0]
    results = {r["kernel"]: r for r in case["results"]}
    assert {r["status"] for r in results.values()} == {"measured", "skipped"}
    assert results["attn"]["error"] < 1e-2 < results["attn window=128+16"]["error"]
    assert results["attn linear"]["other"]
    assert "error" not in results["attn linear"]
    assert case["density"] == pytest.approx(257 / 512)
    text = (folder / "results.md").read_text()
    assert "| attn |" in text
    best = max(results["attn"]["gflops"], results["attn layout"]["gflops"]) * 1e-3
    assert f"| causal | {best:.3f} (" in text
    for name in ("speed_over_length", "memory_over_length", "error_over_cost"):
        pytest.importorskip("matplotlib", reason="needs matplotlib (the extra `viz`)")
        assert (folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_schema_refuses(finished):
    folder, _, _ = finished
    text = (folder / "results.json").read_text()
    for change, told in (
        (lambda r: r.pop("machine"), "must have 'machine'"),
        (lambda r: r["cases"][0].update(dtype="int8"), "results.cases[0].dtype must be one of"),
        (lambda r: r["cases"][0]["results"][0].update(ms="fast"), "results[0].ms must be of type number"),
        (lambda r: r["cases"][0]["results"][0].update(ms=0), "must be greater than 0"),
        (lambda r: r["cases"][0].update(extra=1), "unknown field 'extra'"),
    ):
        record = json.loads(text)
        change(record)
        with pytest.raises(ValueError) as error:  # noqa: PT011
            validate(record)
        assert told in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "no such case"], "no case's name contains"),
        (["--without", "attention"], "--without must name one of FlexAttention, SDPA flash"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--lengths", "8"], "--lengths must be 256"),
    ],
)
def test_wrong_arguments(capsys, arguments, told):
    assert command.main(arguments) == 2
    assert told in capsys.readouterr().err


def test_interrupting_is_no_accident(monkeypatch, capsys):
    def interrupt(options, arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupt)
    assert command.main([]) == 130
    assert "goes on where this one stopped" in capsys.readouterr().err
